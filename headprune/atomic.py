"""Writing that is all or nothing: a temporary sibling, fsync, rename. Nothing is overwritten unasked.

The temporary lies beside its target (the same file system, never the system's temporary folder), so that the rename is
one atomic step; whoever looks at the target sees the old state or the new one, never a half. A target that is a link is written
through: what it leads to is replaced, and the link stays. Devices, pipes and sockets are refused.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from headprune.errors import CheckpointError, UnprovenError
from headprune.files import leftovers
from headprune.files.replacing import Check, discard, put_file_in_place, put_in_place
from headprune.files.targets import (
    behind_links,
    named_error,
    naming,
    refuse_other_kinds,
    refuse_unwritable,
)
from headprune.files.walk import everything_in

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
            aside = _put_aside(staging, place, "unproven")
            kept = f"what was written is kept in {aside}; {error.hint}"
            raise UnprovenError(error.what, where=error.where, hint=kept) from error
        _settle(staging)
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
        _fsync(place.parent)


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
        temporary.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask())
        _fsync(temporary)
        try:
            put_file_in_place(temporary, place, overwrite=overwrite, check=check)
        except CheckpointError as error:
            aside = leftovers.put_file_aside(temporary, place, "unplaced")
            kept = f"what was written is kept in {aside}; {error.hint}"
            raise CheckpointError(error.what, where=where, hint=kept) from error
    with suppress(OSError):  # as above
        _fsync(place.parent)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small file atomically, replacing what was there unless ``overwrite`` is off.

    Raises:
        CheckpointError: The write failed; the file is as it was.
    """
    with staged_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Append to a file, or make it; nothing is replaced, and a pipe that nobody reads doesn't hold us up.

    Raises:
        CheckpointError: It can't be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    with (
        naming(path),
        os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)


def _put_aside(staging: Path, place: Path, word: str) -> Path:
    aside = leftovers.put_aside(staging, place, word)
    aside.chmod(0o777 & ~_umask())
    return aside


def _kept_aside(error: CheckpointError | OSError, staging: Path, place: Path) -> CheckpointError:
    """Keep what can't take its place beside it, and return the error that says so."""
    why = named_error(error, place) if isinstance(error, OSError) else error
    try:
        aside = _put_aside(staging, place, "unplaced")
    except OSError:
        return why
    kept = f"what was written is kept in {aside}; {why.hint}"
    return CheckpointError(why.what, where=why.where, hint=kept)


def _settle(staging: Path) -> None:
    """Give what was written the usual permissions, and see to it that it is on the disk."""
    # Some writers make their files private, as temporary files are.
    umask = _umask()
    staging.chmod(0o777 & ~umask)
    for path in everything_in(staging):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        _fsync(path)
    _fsync(staging)


def _fsync(path: Path) -> None:
    # Directories can't be opened on some systems; the rename is atomic there all the same.
    with suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
