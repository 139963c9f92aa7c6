"""Temporaries beside a target: made, locked for as long as their writer lives, recognised, put back, cleaned away.

A temporary is called ``.NAME.headprune-tmp-PROCESS-RANDOM``. Its writer holds a lock on it, which the system lets go when the
process ends, however it ends; so a temporary whose lock can be taken is what a killed run left, whatever its process' number.
What a replacement has moved aside is called like the temporary that takes its place, with that one's inode, time and ``-old``
behind.
"""

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from headprune.errors import CheckpointError
from headprune.runtime.locks import Lock, is_still, take

_MARK = ".headprune-tmp-"
_BEHIND_THE_MARK = re.compile(
    r"(?P<stem>(?P<process>\d+)-[a-z0-9_]+)(?P<old>(?:-(?P<successor>\d+-\d+))?-old)?"
)
# The mark, a process, a random word, an inode, a time, "-old": what a temporary's name has more than its target's.
LONGER_BY = 1 + len(_MARK) + 10 + 1 + 8 + 1 + 20 + 1 + 19 + len("-old")
# Where the file system knows no locks, a leftover is one whose process is gone and that nobody touched for this long.
_STALE_SECONDS = 24 * 3600


@contextmanager
def temporary(target: Path, *, is_file: bool) -> Iterator[Path]:
    """Yield a new, empty file or directory beside ``target``, locked until the block ends; it is removed then, if still there."""
    path, descriptor = _make_locked(target, is_file=is_file)
    try:
        yield path
    finally:
        if not is_stranded(path):
            _remove(path)
        if descriptor is not None:
            os.close(descriptor)


def old_name(temporary: Path) -> Path:
    """Return the name to which the target of a temporary directory is moved aside while that replaces it."""
    return temporary.with_name(f"{temporary.name}-{_identity(temporary)}-old")


def _identity(directory: Path) -> str:
    """Return what identifies a directory, also when it is renamed: its inode, which alone may be used again, and its time."""
    state = directory.stat()
    return f"{state.st_ino}-{state.st_mtime_ns}"


def is_stranded(temporary: Path) -> bool:
    """Whether a temporary was to replace its target, which is moved aside now, and the replacement failed."""
    return temporary.is_dir() and is_there(old_name(temporary))


def put_aside(path: Path, target: Path, word: str) -> Path:
    """Rename ``path`` to a new name, made of its target's and a word."""
    names = (f"{target.name}.{word}" + (f"-{number}" if number > 1 else "") for number in count(1))
    asides = map(target.with_name, names)
    if not path.is_dir():
        return next(aside for aside in asides if put_unless_taken(path, aside))
    for aside in asides:
        with suppress(FileExistsError):
            aside.mkdir()
            break
    try:
        path.replace(aside)  # an empty directory is replaced as a whole
    except OSError:
        aside.rmdir()
        raise
    return aside


def put_unless_taken(temporary: Path, target: Path) -> bool:
    """Put a temporary file in its place if nothing is there, in one step; return whether it is there now."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        try:  # no hard links here: an empty file holds the target for a moment
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        temporary.replace(target)
    return True


def put_back(target: Path) -> bool:
    """Put back what interrupted replacements of ``target`` moved aside, if nothing lies there now; nothing of it is lost.

    The new state that should have taken the place is whole by then: it is kept as ``NAME.unplaced``. Where something else
    lies at ``target`` by now, that stays, and the old state is kept as ``NAME.replaced``.

    Returns:
        Whether something was put back.

    Raises:
        OSError: It can't be renamed.
    """
    was_put_back = False
    for old, stem, successor in _moved_aside_from(target):
        temporary = old.with_name(stem)
        if temporary.is_dir() and not _is_dead(temporary):
            continue  # its replacement is going on at this moment
        if is_vacant(target):
            old.rename(target)  # takes the place of an empty directory, and of nothing else
            was_put_back = True
            if temporary.is_dir():
                put_aside(temporary, target, "unplaced")
        elif successor == _identity(target):
            shutil.rmtree(old, ignore_errors=True)  # the replacement was done
        else:
            put_aside(old, target, "replaced")
    return was_put_back


def clean(target: Path) -> None:
    """Remove the temporaries of ``target`` that runs of this user left when they were killed; links are never followed."""
    for path, match in _siblings(target):
        if not match["old"] and _is_own(path) and not is_stranded(path):
            _remove_if_dead(path)


def is_there(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_vacant(target: Path) -> bool:
    """Whether nothing lies at ``target``, or an empty directory."""
    try:
        return not any(target.iterdir())
    except FileNotFoundError:
        return not is_there(target)
    except NotADirectoryError:
        return False


def _make_locked(target: Path, *, is_file: bool) -> tuple[Path, int | None]:
    """Make a temporary and lock it; should somebody clean it away before we have its lock, make another."""
    for _attempt in range(100):
        path = _make(target, is_file=is_file)
        try:
            descriptor, lock = take(path)
        except FileNotFoundError:
            continue
        except OSError:
            _remove(path)
            raise
        if lock is not Lock.BUSY and (descriptor is None or is_still(path, descriptor)):
            return path, descriptor
        if descriptor is not None:
            os.close(descriptor)
    raise CheckpointError(
        f"no temporary beside {target.name} lasts: something removes it at once",
        where=str(target.parent),
        hint="choose another place",
    )


def _make(target: Path, *, is_file: bool) -> Path:
    prefix = f"{_prefix(target)}{os.getpid()}-"
    if not is_file:
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix)
    os.close(handle)
    return Path(name)


def _prefix(target: Path) -> str:
    return f".{target.name}{_MARK}"


def _siblings(target: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield all temporaries of ``target`` and what its replacements moved aside, each with the parts of its name."""
    prefix = _prefix(target)
    try:
        # No Path of each: a journal has thousands.
        with os.scandir(target.parent) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        match = _BEHIND_THE_MARK.fullmatch(name.removeprefix(prefix))
        if match:
            yield target.parent / name, match


def _moved_aside_from(target: Path) -> list[tuple[Path, str, str | None]]:
    """Return what replacements of ``target`` moved aside, the last first: path, name of the temporary, its identity."""
    old = [
        (path, _prefix(target) + match["stem"], match["successor"])
        for path, match in _siblings(target)
        if match["old"] and path.is_dir() and _is_own(path)
    ]
    return sorted(old, key=lambda entry: entry[0].lstat().st_ctime_ns, reverse=True)


def _is_own(path: Path) -> bool:
    """Whether a path is a directory or a regular file, no link, of the user who runs us."""
    try:
        state = path.lstat()
    except OSError:
        return False
    is_plain = stat.S_ISDIR(state.st_mode) or stat.S_ISREG(state.st_mode)
    return is_plain and (sys.platform == "win32" or state.st_uid == os.geteuid())


def _remove_if_dead(path: Path) -> None:
    """Remove a leftover, holding its lock, so that nobody takes it for their own meanwhile."""
    try:
        descriptor, lock = take(path)
    except OSError:
        return
    try:
        is_stale = (
            lock is Lock.UNSUPPORTED
            and _has_ended(path)
            and time.time() - path.stat().st_mtime > _STALE_SECONDS
        )
        if lock is Lock.HELD or is_stale:
            _remove(path)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_dead(temporary: Path) -> bool:
    """Whether the writer of a temporary has ended."""
    try:
        descriptor, lock = take(temporary)
    except FileNotFoundError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return lock is Lock.HELD or (lock is Lock.UNSUPPORTED and _has_ended(temporary))


def _has_ended(temporary: Path) -> bool:
    """Whether the process whose number a temporary has in its name is gone."""
    number = temporary.name.rpartition(_MARK)[2].partition("-")[0]
    try:
        with suppress(PermissionError, OverflowError):
            os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    return False
