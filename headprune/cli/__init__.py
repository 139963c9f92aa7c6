"""The command line; one file per command; parse, call the pipeline, render.

Nothing is imported before :func:`main` runs: Ctrl-C in the first second is answered as any later one is.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit 0 fine, 1 a gate or proof said no, 2 anything else, 130 Ctrl-C or SIGTERM.

    The process ends with it: once it is known how that went, a signal changes nothing any more.
    """
    numbers, hook = _answered(), sys.unraisablehook
    received.clear()
    try:
        sys.unraisablehook = partial(_again, hook)
        _answer(numbers, _interrupt)
        from headprune.cli.app import run_app

        code = run_app()
        _answer(numbers, signal.SIG_IGN)
    except KeyboardInterrupt as stopped:
        _answer(numbers, signal.SIG_IGN)
        code = _stopped(stopped)
    finally:
        sys.unraisablehook = hook
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
    received.append(_number)
    raise _StoppedError


def _again(hook: Callable[[Any], None], unraisable: Any) -> None:
    """Send a signal to stop once more where it came in a destructor: what that raises is lost, and the work would go on."""
    if not isinstance(unraisable.exc_value, _StoppedError):
        hook(unraisable)
        return
    timer = threading.Timer(0.05, signal.raise_signal, received[-1:])
    timer.daemon = True
    timer.start()


received: list[int] = []
"""Signals to stop: libraries that don't know what to make of one raise an error of their own instead."""


def _answered() -> list[int]:
    """Return what is answered: Ctrl-C, and SIGTERM as Ctrl-C, so that what is being written is removed.

    A signal that whoever started us wants ignored (nohup, a shell's background job) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    both, default = (signal.SIGINT, signal.SIGTERM), (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in both if signal.getsignal(number) in default]


def _answer(numbers: list[int], how: Any) -> None:
    for number in numbers:
        signal.signal(number, how)


def _stopped(stopped: KeyboardInterrupt) -> int:
    """Say in one line what can be resumed."""
    notes = getattr(stopped, "__notes__", [])
    with suppress(OSError, ValueError):  # nobody listens any more
        if sys.stderr is not None:
            told = "; ".join(notes) or "nothing was left half-written"
            sys.stderr.write(f"\nstopped; {told}\n")
            sys.stderr.flush()
    return 130
