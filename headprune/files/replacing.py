"""How a directory takes its place, and another's: in one step, and nothing is lost on the way."""

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headprune.errors import CheckpointError
from headprune.files import leftovers

Check = Callable[[Path], None]
"""Raises a CheckpointError where a directory or file may not be replaced."""


def put_in_place(
    staging: Path, place: Path, *, check: Check | None, was_there: bool
) -> Path | None:
    """Put ``staging`` in its place; return what was there, if anything, under the name that it has now.

    Args:
        staging: What was written.
        place: Where to.
        check: What is asked of a directory that is to be replaced; without it none is.
        was_there: Whether there was a directory, an empty one, when the work began.

    Raises:
        CheckpointError: Something is there that may not be replaced.
    """
    if leftovers.is_vacant(place):
        _fill(staging, place, is_claimed=was_there and place.exists())
        return None
    if check is None:
        raise _taken(place)
    check(place)
    return _swap(staging, place)


def put_file_in_place(
    temporary: Path, place: Path, *, overwrite: bool, check: Check | None
) -> None:
    """Put a temporary file in its place.

    Args:
        temporary: What was written.
        place: Where to.
        overwrite: Whether a file that is there may be replaced.
        check: What is asked of it.

    Raises:
        CheckpointError: Something is there that may not be replaced.
    """
    if not overwrite:
        if not leftovers.put_unless_taken(temporary, place):
            raise _taken(place)
        return
    if check is not None and place.exists():
        check(place)
    temporary.replace(place)


def discard(old: Path, place: Path, *, check: Check, is_precious: bool) -> None:
    """Remove what was replaced; what is more than was to be replaced is kept as ``NAME.replaced``.

    Args:
        old: Where it lies now.
        place: Where it lay.
        check: What is asked of a directory that is to be replaced: something may have come into it in the last moment.
        is_precious: Whether it had been put back, so that nobody has seen it since it was thought to be lost.
    """
    if not is_precious:
        with suppress(CheckpointError):
            check(old)
            shutil.rmtree(old, ignore_errors=True)
            return
    leftovers.put_aside(old, place, "replaced")


def _fill(staging: Path, place: Path, *, is_claimed: bool) -> None:
    """Put ``staging`` where nothing is; of two that try at once, one can."""
    try:
        if not is_claimed:
            place.mkdir()
    except FileExistsError as error:
        raise _taken(place) from error
    try:
        staging.rename(place)  # takes the place of an empty directory, and of nothing else
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _taken(place) from error
        if not is_claimed:
            with suppress(OSError):
                place.rmdir()
        raise


def _taken(place: Path) -> CheckpointError:
    return CheckpointError(
        f"{place.name} has come to be there meanwhile, and is not replaced",
        where=str(place),
        hint="rename it, or choose another --out the next time",
    )


def _swap(staging: Path, place: Path) -> Path:
    """Put ``staging`` in the place of a directory, which is moved aside first and comes back on failure.

    Raises:
        CheckpointError: Neither could be put there; it says where both are.
    """
    old = leftovers.old_name(staging)
    try:
        place.rename(old)
        staging.rename(place)
    except BaseException as error:
        if not leftovers.is_there(old) or leftovers.is_there(place):
            raise  # nothing was moved, or all was done
        try:
            old.rename(place)
        except OSError:
            reason = error.strerror if isinstance(error, OSError) else "it was stopped"
            raise CheckpointError(
                f"{place.name} can't be replaced: {reason}; and what was there can't be put back",
                where=str(place),
                hint=f"what was there lies in {old}, and what was written in {staging}; "
                "the next run with this output puts back what was there",
            ) from error
        raise
    return old
