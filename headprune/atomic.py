"""Writing that is all or nothing: a temporary sibling, fsync, rename. Nothing is overwritten unasked.

The temporary lies beside its target (the same file system, never the system's temporary folder), so that the rename is
one atomic step; whoever looks at the target sees the old state or the new one, never a half.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from headprune.errors import CheckpointError, UnprovenError

_MARK = ".headprune-tmp-"
MANIFEST = "manifest.json"
"""Lies in every directory that we saved; only such a one is ever replaced."""


def refuse_unusable_target(directory: Path, *, overwrite: bool, needed_bytes: int = 0) -> None:
    """Check, before any work starts, that a directory can be written later.

    Raises:
        CheckpointError: It exists and isn't empty (and ``overwrite`` is off), is a file, can't be created, or the disk
            has less than ``needed_bytes`` left.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(
            f"{directory} is a file, not a directory",
            where="output directory",
            hint="choose another --out",
        )
    if Path.cwd().is_relative_to(directory.absolute()):
        raise CheckpointError(
            f"{directory} is the working directory, or holds it, and can't be replaced as a whole",
            where="output directory",
            hint="choose another --out, such as a new directory in it",
        )
    if directory.is_dir() and any(directory.iterdir()):
        if not overwrite:
            raise CheckpointError(
                f"the output directory {directory} is not empty",
                where="output directory",
                hint="choose another --out, or say --overwrite to replace it",
            )
        if not (directory / MANIFEST).is_file():
            raise CheckpointError(
                f"{directory} holds something that headprune did not write, and is not replaced",
                where="output directory",
                hint=f"choose another --out, or remove it yourself (--overwrite replaces what has a {MANIFEST})",
            )
    refuse_unwritable(directory, where=f"output directory {directory}", needed_bytes=needed_bytes)


def refuse_unwritable(path: Path, *, where: str, needed_bytes: int = 0) -> None:
    """Check that a file or directory could be made.

    Raises:
        CheckpointError: The place may not be written to, or the disk has less than ``needed_bytes`` left.
    """
    parent = _nearest_existing(path if path.is_dir() else path.parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{parent} can't be written to",
            where=where,
            hint="choose another place, or change the permissions",
        )
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise CheckpointError(
            f"the disk has {free / 1e9:.2f} GB left and {needed_bytes / 1e9:.2f} GB are needed",
            where=where,
            hint="free some space, or choose a place on another disk",
        )


@contextmanager
def staged_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that becomes ``target`` when the block ends well.

    On an error, or Ctrl-C, the temporary is removed and ``target`` stays as it was. What an earlier, killed run left
    beside the target is removed first. Where a proof could not be run, what was written is kept beside the target, as
    ``NAME.unproven``.

    Raises:
        UnprovenError: The block raised one; it says where what was written lies now.
        CheckpointError: A write failed (the disk is full, say), or ``target`` is not empty and ``overwrite`` is off.
    """
    refuse_unusable_target(target, overwrite=overwrite)
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}{_MARK}*"):
            if not _is_alive(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}{_MARK}{os.getpid()}-")
        )
    try:
        with _naming(target):
            try:
                yield staging
            except UnprovenError as error:
                aside = _put_aside(staging, target)
                kept = f"what was written is kept in {aside}; {error.hint}"
                raise UnprovenError(error.what, where=error.where, hint=kept) from error
            # Some writers make their files private, as temporary files are.
            umask = _umask()
            staging.chmod(0o777 & ~umask)
            for path in sorted(staging.rglob("*")):
                path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
                _fsync(path)
            _fsync(staging)
            _swap(staging, target)
        # The target is whole by now. Should the disk fail here, the rename may be lost with the power, but nothing is half.
        with suppress(OSError):
            _fsync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``target`` that replaces it when the block ends well, and is removed when not.

    Raises:
        CheckpointError: A write failed; ``target`` is as it was.
    """
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}{_MARK}{os.getpid()}-"
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
            _fsync(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    with suppress(OSError):  # as above
        _fsync(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically, replacing what was there.

    Raises:
        CheckpointError: The write failed; the file is as it was.
    """
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn a failed system call into an error that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = (
            "free some space, or choose a place on another disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose another place, or repair this one; nothing was left half-written"
        )
        raise CheckpointError(
            f"{target.name} can't be written: {reason}",
            where=str(error.filename or target),
            hint=hint,
        ) from error


def _put_aside(staging: Path, target: Path) -> Path:
    """Rename ``staging`` to a name beside ``target`` that nothing has yet, and return it."""
    for number in count(1):
        aside = target.with_name(f"{target.name}.unproven" + (f"-{number}" if number > 1 else ""))
        with suppress(FileExistsError):
            aside.mkdir()
            break
    staging.replace(aside)  # an empty directory is replaced as a whole
    aside.chmod(0o777 & ~_umask())
    return aside


def _swap(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; the old one is moved aside first and comes back on failure."""
    if not target.exists():
        staging.rename(target)
        return
    if not any(target.iterdir()):
        target.rmdir()
        staging.rename(target)
        return
    old = staging.with_name(staging.name + "-old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


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


def _is_alive(leftover: Path) -> bool:
    """Whether the process that made a temporary still runs (its number is in the name)."""
    number = leftover.name.rpartition(_MARK)[2].partition("-")[0]
    if not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
