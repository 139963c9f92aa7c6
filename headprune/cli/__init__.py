"""The command line: parse, call a workflow, render.

Nothing is imported before :func:`main` runs: Ctrl-C in the first second is answered as any later one is.
"""

import signal
import sys
from contextlib import suppress
from functools import partial

from headprune.cli.signals import again, answer, answered, discard, interrupt, received

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit 0 fine, 1 a gate or proof said no, 2 anything else, 130 Ctrl-C or SIGTERM.

    The process ends with it: once it is known how that went, a signal changes nothing any more.
    """
    numbers, hook = answered(), sys.unraisablehook
    received.clear()
    try:
        sys.unraisablehook = partial(again, hook)
        answer(numbers, interrupt)
        from headprune.cli.app import run_app

        code = run_app()
        answer(numbers, signal.SIG_IGN)
    except KeyboardInterrupt as stopped:
        answer(numbers, signal.SIG_IGN)
        code = stopped_exit_code(stopped)
    finally:
        sys.unraisablehook = hook
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            discard(stream)
    sys.exit(code)


def stopped_exit_code(stopped: KeyboardInterrupt) -> int:
    """Say in one line what can be resumed."""
    notes = getattr(stopped, "__notes__", [])
    with suppress(OSError, ValueError):  # nobody listens any more
        if sys.stderr is not None:
            told = "; ".join(notes) or "nothing was left half-written"
            if notes:  # where there are some, more than this was imported already
                from headprune.cli.options import as_options

                told = as_options(told)
            sys.stderr.write(f"\nstopped; {told}\n")
            sys.stderr.flush()
    return 130
