"""Signals to stop, and streams that nobody reads: what the command line does with them. Imports nothing of ours."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any


def discard(stream: Any) -> None:
    """Let go of what a stream still holds: as the interpreter ends it would try once more to write it, and fail."""
    with suppress(OSError, ValueError, AttributeError):  # no file of the operating system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _StoppedError(KeyboardInterrupt):
    """A signal to stop. Of a class of its own: Python kills itself by the signal where it ever saw a plain KeyboardInterrupt."""


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Answer a signal to stop."""
    received.append(_number)
    raise _StoppedError


def again(hook: Callable[[Any], None], unraisable: Any) -> None:
    """Send a signal to stop once more where it came in a destructor: what that raises is lost, and the work would go on."""
    if not isinstance(unraisable.exc_value, _StoppedError):
        hook(unraisable)
        return
    timer = threading.Timer(0.05, signal.raise_signal, received[-1:])
    timer.daemon = True
    timer.start()


received: list[int] = []
"""Signals to stop: libraries that don't know what to make of one raise an error of their own instead."""


def answered() -> list[int]:
    """Return what is answered: Ctrl-C, and SIGTERM as Ctrl-C, so that what is being written is removed.

    A signal that whoever started us wants ignored (nohup, a shell's background job) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    both, default = (signal.SIGINT, signal.SIGTERM), (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in both if signal.getsignal(number) in default]


def answer(numbers: list[int], handler: Any) -> None:
    """Set what answers these signals."""
    for number in numbers:
        signal.signal(number, handler)
