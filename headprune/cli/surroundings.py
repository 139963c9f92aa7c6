"""What the operating system gives a command: stdout, and a working directory. Where they are unfit, they are named."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headprune.cli.signals import discard
from headprune.errors import ConfigError, HeadpruneError
from headprune.runtime.launcher import launched_size


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Name a stdout that can't be written to: its disk is full, or its reader went away (``headprune ... | head``).

    Raises:
        HeadpruneError: It can't.
    """
    try:
        yield
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich turns a broken pipe into the end of the program
        discard(sys.stdout)
        raise stdout_error(error) from error


class ReaderGoneError(HeadpruneError):
    """Nobody reads stdout any more (``headprune ... | head``): nothing is said to who has heard enough."""


def stdout_error(error: BaseException | None) -> HeadpruneError:
    """Return the error for a stdout that can't be written to."""
    kind = HeadpruneError
    reason = getattr(error, "strerror", None) or "its reader went away"
    if error is None or isinstance(error, (BrokenPipeError, SystemExit)):
        kind = ReaderGoneError
    return kind(
        f"stdout can't be written to: {reason}",
        where="stdout",
        hint="send it to a file on a disk with room, or to a program that reads all of it",
    )


_HINTS = {
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
    errno.EROFS: "choose a place that may be written to",
    errno.ENOSPC: "free some space, or choose a place on another disk",
    errno.EDQUOT: "free some space, or choose a place on another disk",
    errno.EFBIG: "choose a place on another disk: this one takes no file that large",
    errno.EMFILE: "let a process open more files: ulimit -n 4096",
    errno.ENOENT: "something removed it meanwhile: run the command again",
}


def system_error(error: OSError) -> HeadpruneError:
    """Return the error for a call to the operating system that failed on a file that no more precise error names."""
    place = str(error.filename or "a file that this command uses")
    return HeadpruneError(
        f"the system says of {Path(place).name or place}: {error.strerror}",
        where=place,
        hint=_HINTS.get(error.errno or 0, "check the disk, or its connection, and try again"),
    )


def check_surroundings() -> None:
    """Refuse what would end the command after its work.

    Raises:
        HeadpruneError: Stdout is closed, or the working directory is gone.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise HeadpruneError(
            "stdout is closed, and that is where results go",
            where="stdout",
            hint="send it somewhere: headprune ... > results.txt, or > /dev/null",
        )
    try:
        Path.cwd()
    except OSError as error:
        raise HeadpruneError(
            f"the working directory can't be used: {error.strerror}",
            where="working directory",
            hint="change to a directory that exists: cd ~",
        ) from error


def refuse_several_processes(command: str, *, takes_scores: bool) -> None:
    """Refuse a launcher's processes where each would do, and write, the same; ``takes_scores``: of a command with ``--scores``.

    Raises:
        ConfigError: There are several, or a launcher's variable is no number.
    """
    if (size := launched_size()) > 1:
        raise ConfigError(
            f"{command} runs in one process, and a launcher started {size}",
            where="torchrun, accelerate launch",
            hint=f"score on several: torchrun -m headprune -- score ...; then headprune {command} --scores FILE"
            if takes_scores
            else f"start it without a launcher: headprune {command} ...",
        )
