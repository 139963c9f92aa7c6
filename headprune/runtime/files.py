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


def refuse_unusable_target(
    directory: Path, *, may_replace: Check | None, needed_bytes: int = 0
) -> bool:
    """Check, before any work starts, that a directory can be written later.

    What a run that was killed while it replaced the directory had moved aside is put back first.

    Returns:
        Whether something was put back.

    Raises:
        CheckpointError: The directory isn't empty and may not be replaced, is a file, can't be created, or the disk has less than
            ``needed_bytes`` left.
    """
    refuse_unwritable(
        directory, where=f"output directory {directory}", needed_bytes=needed_bytes, is_file=False
    )
    with naming(directory):
        target = behind_links(directory)
        if Path.cwd().is_relative_to(target):
            raise CheckpointError(
                f"{directory} is the working directory, or holds it, and can't be replaced as a whole",
                where="output directory",
                hint="choose another `out`, such as a new directory in it",
            )
        was_put_back = leftovers.put_back(target)
        if leftovers.is_vacant(target):
            return was_put_back
        if may_replace is None:
            raise CheckpointError(
                f"the output directory {directory} is not empty",
                where="output directory",
                hint="choose another `out`, or say `overwrite=True` to replace it",
            )
        may_replace(directory)
    return was_put_back


@contextmanager
def staged_directory(
    target: Path, *, may_replace: Check | None = None, keep_aside: bool = True
) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that becomes ``target`` when the block ends well.

    On an error, or Ctrl-C, the temporary is removed and ``target`` stays as it was. What earlier, killed runs left
    beside the target is put back or removed first. Where a proof could not be run, what was written is kept beside the target,
    as ``NAME.unproven``; where something that may not be replaced came to lie at ``target`` meanwhile, as ``NAME.unplaced``.

    Args:
        target: The directory to be made.
        may_replace: Refuses what may not be replaced, now and again right before it is; None where nothing may be.
        keep_aside: Whether what can't be put at ``target`` is kept.

    Raises:
        UnprovenError: The block raised one; it says where what was written lies now.
        CheckpointError: A write failed (the disk is full, say), or ``target`` is not empty and may not be replaced.
    """
    was_put_back = refuse_unusable_target(target, may_replace=may_replace)
    with naming(target), ExitStack() as stack:
        directory = behind_links(target)
        directory.parent.mkdir(parents=True, exist_ok=True)
        leftovers.clean(directory)
        existed = directory.exists()
        staging = stack.enter_context(leftovers.temporary(directory, is_file=False))
        try:
            yield staging
        except UnprovenError as error:
            staging.chmod(0o777 & ~umask())
            aside = leftovers.put_aside(staging, directory, "unproven")
            raise _saying_where(error, aside) from error
        settle(staging)
        try:
            if leftovers.is_vacant(directory):
                _fill(staging, directory, is_claimed=existed and directory.exists())
                old = None
            elif may_replace is None:
                raise _taken(directory)
            else:
                may_replace(directory)
                old = _swap(staging, directory)
        except (CheckpointError, OSError) as error:
            if keep_aside and not leftovers.is_stranded(staging):
                raise _kept_aside(error, staging, directory) from error
            raise
        if old is not None and may_replace is not None:
            _discard(old, directory, check=None if was_put_back else may_replace)
    # The target is whole by now. Should the disk fail here, the rename may be lost with the power, but nothing is half.
    with suppress(OSError):
        fsync(directory.parent)


def _anything(_path: Path) -> None:
    """Let anything be replaced."""


@contextmanager
def staged_file(target: Path, *, may_replace: Check | None = _anything) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that replaces it when the block ends well, and is removed when not.

    Where a file lies there in the end that may not be replaced, what was written is kept beside it, as ``NAME.unplaced``.

    Args:
        target: The file to be made; a link is written through.
        may_replace: Refuses a file that may not be replaced, right before it is; None where none may be.

    Raises:
        CheckpointError: A write failed, or ``target`` is no file; it is as it was.
    """
    where = str(target)
    with naming(target), ExitStack() as stack:
        file = behind_links(target)
        refuse_other_kinds(target, where=where, is_file=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        leftovers.clean(file)
        temporary = stack.enter_context(leftovers.temporary(file, is_file=True))
        yield temporary
        refuse_other_kinds(target, where=where, is_file=True)
        temporary.chmod(file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~umask())
        fsync(temporary)
        try:
            if may_replace is None and not leftovers.put_unless_taken(temporary, file):
                raise _taken(file)
            if may_replace is not None:
                if file.exists():
                    may_replace(file)
                temporary.replace(file)
        except CheckpointError as error:
            aside = leftovers.put_aside(temporary, file, "unplaced")
            raise _saying_where(error, aside) from error
    with suppress(OSError):
        fsync(file.parent)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small file atomically, replacing what was there unless ``overwrite`` is off.

    Raises:
        CheckpointError: The write failed; the file is as it was.
    """
    with staged_file(path, may_replace=_anything if overwrite else None) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _kept_aside(error: CheckpointError | OSError, staging: Path, target: Path) -> CheckpointError:
    """Keep what can't be put at its target beside it, and return the error that says so."""
    reason = named_error(error, target) if isinstance(error, OSError) else error
    try:
        return _saying_where(reason, leftovers.put_aside(staging, target, "unplaced"))
    except OSError:
        return reason


def _saying_where(error: _Error, aside: Path) -> _Error:
    """Return the error with where the written files are kept."""
    hint = f"what was written is kept in {aside}; {error.hint}"
    return type(error)(error.what, where=error.where, hint=hint)


def _discard(old: Path, target: Path, *, check: Check | None) -> None:
    """Remove what was replaced; what is more than was to be replaced is kept as ``NAME.replaced``.

    Args:
        old: Where it lies now.
        target: Where it lay.
        check: Refuses what may not be replaced: something may have come into it in the last moment. None where it had been put
            back, so that nobody has seen it since it was thought to be lost.
    """
    if check is not None:
        with suppress(CheckpointError):
            check(old)
            shutil.rmtree(old, ignore_errors=True)
            return
    leftovers.put_aside(old, target, "replaced")


def _fill(staging: Path, target: Path, *, is_claimed: bool) -> None:
    """Put ``staging`` where nothing is; of two that try at once, one can."""
    try:
        if not is_claimed:
            target.mkdir()
    except FileExistsError as error:
        raise _taken(target) from error
    try:
        staging.rename(target)  # replaces an empty directory, and nothing else
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _taken(target) from error
        if not is_claimed:
            with suppress(OSError):
                target.rmdir()
        raise


def _taken(target: Path) -> CheckpointError:
    return CheckpointError(
        f"{target.name} has come to be there meanwhile, and is not replaced",
        where=str(target),
        hint="rename it, or choose another `out` the next time",
    )


def _swap(staging: Path, target: Path) -> Path:
    """Replace a directory by ``staging``; it is moved aside first, and comes back on failure."""
    old = leftovers.old_name(staging)
    try:
        target.rename(old)
        staging.rename(target)
    except BaseException as error:
        if not leftovers.is_there(old) or leftovers.is_there(target):
            raise  # nothing was moved, or all was done
        try:
            old.rename(target)
        except OSError:
            reason = error.strerror if isinstance(error, OSError) else "it was stopped"
            raise CheckpointError(
                f"{target.name} can't be replaced: {reason}; and what was there can't be put back",
                where=str(target),
                hint=f"what was there lies in {old}, and what was written in {staging}; "
                "the next run with this output puts back what was there",
            ) from error
        raise
    return old
