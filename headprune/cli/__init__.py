"""The command line; one file per command; parse, call the pipeline, render.

Nothing is imported before :func:`main` runs: Ctrl-C in the first second is answered as any later one is.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit 0 fine, 1 a gate or proof said no, 2 anything else, 130 Ctrl-C or SIGTERM."""
    with _termination_interrupts():
        try:
            from headprune.cli.app import run_app

            code = run_app()
        except KeyboardInterrupt as stopped:
            code = _stopped(stopped)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            discard(stream)
    sys.exit(code)


def discard(stream: Any) -> None:
    """Let go of what a stream still holds: as the interpreter ends it would try once more to write it, and fail."""
    with suppress(OSError, ValueError, AttributeError):  # no file of the operating system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _StoppedError(KeyboardInterrupt):
    """A signal to stop. Of a class of its own: Python kills itself by the signal where it ever saw a plain KeyboardInterrupt."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _StoppedError


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: what is being written is removed, what can be resumed is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # A signal that whoever started us wants ignored (nohup, a shell's background job) stays so.
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(stopped: KeyboardInterrupt) -> int:
    """Say in one line what can be resumed; from here on a second Ctrl-C changes nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    notes = getattr(stopped, "__notes__", [])
    with suppress(OSError, ValueError):  # nobody listens any more
        if sys.stderr is not None:
            told = "; ".join(notes) or "nothing was left half-written"
            sys.stderr.write(f"\nstopped; {told}\n")
            sys.stderr.flush()
    return 130
