"""Writing that is all or nothing: a temporary sibling, fsync, rename. Nothing is overwritten unasked.

The temporary lies beside its target (the same file system, never the system's temporary folder), so that the rename is
one atomic step; whoever looks at the target sees the old state or the new one, never a half. A target that is a link is written
through: what it leads to is replaced, and the link stays. Devices, pipes and sockets are refused.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from headprune.errors import CheckpointError, HeadpruneError, UnprovenError
from headprune.runtime import leftovers
from headprune.runtime.targets import (
    behind_links,
    fsync,
    named_error,
    naming,
    refuse_other_kinds,
    refuse_unwritable,
    settle,
    umask,
)

Check = Callable[[Path], None]
"""Raises a CheckpointError where a directory or file may not be replaced."""

_Error = TypeVar("_Error", bound=HeadpruneError)

MANIFEST = "manifest.json"
"""Lies in every directory that we saved; only such a one is ever replaced."""


def require_manifest(directory: Path) -> None:
    """Ask the least of a directory that is to be replaced: that a manifest lies in it.

    Raises:
        CheckpointError: None does.
    """
    if not (directory / MANIFEST).is_file():
        raise CheckpointError(
            f"{directory} holds something that headprune did not write, and is not replaced",
            where="output directory",
            hint=f"choose another --out, or remove it yourself (--overwrite replaces what has a {MANIFEST})",
        )


def refuse_unusable_target(
    directory: Path, *, overwrite: bool, needed_bytes: int = 0, check: Check = require_manifest
) -> bool:
    """Check, before any work starts, that a directory can be written later.

    What a run that was killed while it replaced the directory had moved aside is put back first.

    Args:
        directory: Where something will be written.
        overwrite: Whether what is there may be replaced.
        needed_bytes: How much will be written.
        check: What is asked of a directory that is to be replaced.

    Returns:
        Whether something was put back.

    Raises:
        CheckpointError: It exists and isn't empty (and ``overwrite`` is off, or ``check`` says no), is a file, can't be
            created, or the disk has less than ``needed_bytes`` left.
    """
    refuse_unwritable(
        directory, where=f"output directory {directory}", needed_bytes=needed_bytes, is_file=False
    )
    with naming(directory):
        place = behind_links(directory)
        if Path.cwd().is_relative_to(place):
            raise CheckpointError(
                f"{directory} is the working directory, or holds it, and can't be replaced as a whole",
                where="output directory",
                hint="choose another --out, such as a new directory in it",
            )
        was_put_back = leftovers.put_back(place)
        if leftovers.is_vacant(place):
            return was_put_back
    if not overwrite:
        raise CheckpointError(
            f"the output directory {directory} is not empty",
            where="output directory",
            hint="choose another --out, or say --overwrite to replace it",
        )
    with naming(directory):
        check(directory)
    return was_put_back


@contextmanager
def staged_directory(
    target: Path,
    *,
    overwrite: bool = False,
    check: Check = require_manifest,
    keep_aside: bool = True,
) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that becomes ``target`` when the block ends well.

    On an error, or Ctrl-C, the temporary is removed and ``target`` stays as it was. What earlier, killed runs left
    beside the target is put back or removed first. Where a proof could not be run, what was written is kept beside the target,
    as ``NAME.unproven``; where something came to lie at ``target`` meanwhile that may not be replaced, as ``NAME.unplaced``.

    Args:
        target: The directory to be made.
        overwrite: Whether what is there may be replaced.
        check: What is asked of a directory that is to be replaced, now and again right before it is.
        keep_aside: Whether what can't take its place is kept.

    Raises:
        UnprovenError: The block raised one; it says where what was written lies now.
        CheckpointError: A write failed (the disk is full, say), or ``target`` is not empty and may not be replaced.
    """
    was_put_back = refuse_unusable_target(target, overwrite=overwrite, check=check)
    with naming(target), ExitStack() as stack:
        place = behind_links(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        leftovers.clean(place)
        was_there = place.exists()
        staging = stack.enter_context(leftovers.temporary_directory(place))
        try:
            yield staging
        except UnprovenError as error:
            raise _saying_where(error, _put_aside(staging, place, "unproven")) from error
        settle(staging)
        try:
            asked = check if overwrite else None
            old = put_in_place(staging, place, check=asked, was_there=was_there)
        except (CheckpointError, OSError) as error:
            if keep_aside and not leftovers.is_stranded(staging):
                raise _kept_aside(error, staging, place) from error
            raise
        if old is not None:
            discard(old, place, check=check, is_precious=was_put_back)
    # The target is whole by now. Should the disk fail here, the rename may be lost with the power, but nothing is half.
    with suppress(OSError):
        fsync(place.parent)


@contextmanager
def staged_file(
    target: Path, *, overwrite: bool = True, check: Check | None = None
) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that replaces it when the block ends well, and is removed when not.

    Args:
        target: The file to be made; a link is written through.
        overwrite: Whether a file that is there may be replaced.
        check: What is asked of a file right before it is replaced. Where it may not be, what was written is kept beside it, as
            ``NAME.unplaced``.

    Raises:
        CheckpointError: A write failed, or ``target`` is no file; it is as it was.
    """
    where = str(target)
    with naming(target), ExitStack() as stack:
        place = behind_links(target)
        refuse_other_kinds(target, where=where, is_file=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        leftovers.clean(place)
        temporary = stack.enter_context(leftovers.temporary_file(place))
        yield temporary
        refuse_other_kinds(target, where=where, is_file=True)
        temporary.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~umask())
        fsync(temporary)
        try:
            if not overwrite and not leftovers.put_unless_taken(temporary, place):
                raise _taken(place)
            if overwrite:
                if check is not None and place.exists():
                    check(place)
                temporary.replace(place)
        except CheckpointError as error:
            aside = leftovers.put_file_aside(temporary, place, "unplaced")
            raise _saying_where(error, aside) from error
    with suppress(OSError):
        fsync(place.parent)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small file atomically, replacing what was there unless ``overwrite`` is off.

    Raises:
        CheckpointError: The write failed; the file is as it was.
    """
    with staged_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _put_aside(staging: Path, place: Path, word: str) -> Path:
    aside = leftovers.put_aside(staging, place, word)
    aside.chmod(0o777 & ~umask())
    return aside


def _kept_aside(error: CheckpointError | OSError, staging: Path, place: Path) -> CheckpointError:
    """Keep what can't take its place beside it, and return the error that says so."""
    why = named_error(error, place) if isinstance(error, OSError) else error
    try:
        aside = _put_aside(staging, place, "unplaced")
    except OSError:
        return why
    return _saying_where(why, aside)


def _saying_where(error: _Error, aside: Path) -> _Error:
    """Return the error with where the written files are kept."""
    hint = f"what was written is kept in {aside}; {error.hint}"
    return type(error)(error.what, where=error.where, hint=hint)


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
