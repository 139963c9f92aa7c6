"""Locks on files and directories, which the system releases when a process ends, however it ends."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class Lock(Enum):
    """What came of an attempt to take a lock."""

    HELD = "held by us now"
    BUSY = "held by someone else"
    UNSUPPORTED = "unknown to the file system"


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a directory that is there; yields whether we could have it (or the file system knows no locks)."""
    descriptor, lock = take(path)
    try:
        was_replaced = descriptor is not None and not is_still(path, descriptor)
        yield lock is not Lock.BUSY and not was_replaced
    finally:
        if descriptor is not None:
            os.close(descriptor)


def take(path: Path) -> tuple[int | None, Lock]:
    """Try to lock a file or directory; the lock lasts until the descriptor is closed, or the process ends."""
    if sys.platform == "win32":
        return None, Lock.UNSUPPORTED
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None, Lock.BUSY
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            os.close(descriptor)
            raise
        return descriptor, Lock.UNSUPPORTED
    return descriptor, Lock.HELD


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path leads to what is open."""
    try:
        there, opened = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
