"""Where something may be written: what can be known of a target before any work is done, and errors that name it."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from headprune.errors import CheckpointError
from headprune.runtime import leftovers
from headprune.runtime.locks import locked


def refuse_unwritable(
    path: Path, *, where: str, needed_bytes: int = 0, is_file: bool = True
) -> None:
    """Check that a file or directory could be made, or replaced; temporaries of it that killed runs left are removed.

    ``where`` is what the user said it with.

    Raises:
        CheckpointError: Something else lies there, its name is too long to be written beside, the place may not be written
            to, or the disk has less than ``needed_bytes`` left.
    """
    with naming(path):
        target = behind_links(path)
        refuse_other_kinds(path, where=where, is_file=is_file)
        parent = _nearest_existing(target.parent)
        _refuse_long_names(target, parent=parent, where=where)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{parent} can't be written to",
                where=where,
                hint="choose another place, or change the permissions",
            )
        leftovers.clean(target)
        free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise CheckpointError(
            f"the disk has {free / 1e9:.2f} GB left and {needed_bytes / 1e9:.2f} GB are needed",
            where=where,
            hint="free some space, or choose a place on another disk",
        )


@contextmanager
def exclusive(directory: Path, *, where: str) -> Iterator[None]:
    """Hold a directory for this process, from the start of its work: another that asks for it is refused at once.

    Where the file system knows no locks, the block is entered all the same. Directories that were made for this are removed
    in the end if nothing came to lie in them.

    Raises:
        CheckpointError: Another process holds it, or it can't be made.
    """
    with ExitStack() as stack:
        with naming(directory):
            is_new = [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            is_ours = stack.enter_context(locked(behind_links(directory)))
        if not is_ours:
            raise CheckpointError(
                f"{directory} is in use by another run",
                where=where,
                hint="wait until that one has ended, or choose another directory",
            )
        try:
            yield
        finally:
            with suppress(OSError):
                for path in is_new:
                    path.rmdir()


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Turn a failed system call into an error that names the target."""
    try:
        yield
    except OSError as error:
        raise named_error(error, target) from error


def named_error(error: OSError, target: Path) -> CheckpointError:
    """Return an error that says which target a failed system call kept from being written."""
    hint = (
        "free some space, or choose a place on another disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "choose another place, or repair this one; nothing was left half-written"
    )
    return CheckpointError(
        f"{target.name} can't be written: {error.strerror or error}",
        where=str(error.filename or target),
        hint=hint,
    )


def behind_links(path: Path) -> Path:
    """Return where a path leads, links and ``..`` resolved.

    Raises:
        CheckpointError: It is a link that leads nowhere, or no name that a file can have.
    """
    try:
        target = path.resolve()
    except (ValueError, RuntimeError) as error:  # a NUL, or a loop of links
        raise CheckpointError(
            f"{str(path)!r} leads nowhere: it is no name that a file can have, or a loop of links",
            where=repr(str(path)),
            hint="choose another name",
        ) from error
    leads_nowhere = not target.exists() and not target.parent.is_dir()
    if target.is_symlink() or (path.is_symlink() and leads_nowhere):
        raise CheckpointError(
            f"{path} is a link that leads nowhere ({path.readlink()})",
            where=str(path),
            hint="remove the link, or choose another place",
        )
    return target


_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", **_SPECIAL}


def kind_if_special(path: Path) -> str | None:
    """Return the kind of a path that may hang when opened (pipe, socket, device); None for files, directories and nothing.

    Raises:
        OSError: It can't be told.
    """
    try:
        return _SPECIAL.get(stat.S_IFMT(path.stat().st_mode))
    except FileNotFoundError:
        return None


def refuse_other_kinds(path: Path, *, where: str, is_file: bool) -> None:
    """Refuse to replace a directory by a file, a file by a directory, or anything else by either.

    Raises:
        CheckpointError: It is something else.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return
    if kind != (stat.S_IFREG if is_file else stat.S_IFDIR):
        expected = "a file" if is_file else "a directory"
        raise CheckpointError(
            f"{path} is {_KINDS.get(kind, 'something else')}, not {expected}, and is not replaced",
            where=where,
            hint="choose another place" if is_file else "choose another `out`",
        )


def _refuse_long_names(target: Path, *, parent: Path, where: str) -> None:
    """Refuse a name beside which no temporary can be made."""
    longest = _longest_name(parent) - leftovers.LONGER_BY
    length = len(os.fsencode(target.name))
    if length > longest:
        raise CheckpointError(
            f"the name {target.name[:40]}... is too long: it has {length} bytes, and {longest} can be written here",
            where=where,
            hint="choose a shorter name",
        )


def _longest_name(directory: Path) -> int:
    try:
        return os.pathconf(directory, "PC_NAME_MAX")
    except (AttributeError, ValueError, OSError):  # not known here
        return 255


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def everything_in(directory: Path) -> list[Path]:
    """Return all that lies in a directory and its folders, sorted; links are listed, and not followed.

    Raises:
        OSError: A folder can't be read.
    """
    paths = []
    for folder, folders, files in os.walk(directory, onerror=_raise):
        paths += [Path(folder) / name for name in (*folders, *files)]
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def settle(staging: Path) -> None:
    """Give what was written the usual permissions, and see to it that it is on the disk."""
    # Some writers make their files private, as temporary files are.
    mask = umask()
    staging.chmod(0o777 & ~mask)
    for path in everything_in(staging):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        fsync(path)
    fsync(staging)


def fsync(path: Path) -> None:
    """See to it that a file or directory is on the disk."""
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


def umask() -> int:
    """Return the permissions that new files don't get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
