"""What a trial's process does with files: counted, failed or killed at a chosen moment, and kept inside its own folder.

An audit hook sees every file operation of Python before it happens, whoever asks for it. Libraries in Rust and C write past it;
a limit on the size of files (:mod:`benchmarks.faults.child`) makes those fail.
"""

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

_PATHS = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.listdir": 1,
    "os.scandir": 1,
    "open": 1,
    "socket.connect": 0,
}
"""Events by how many of their arguments are paths."""

_READING = ("os.listdir", "os.scandir")
_FILLING = ("open", "os.mkdir", "fsync", "os.link", "os.symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/null", "/dev/shm", "/dev/tty", "/dev/full", "/proc/self")


class Fault(NamedTuple):
    """What happens at a file operation.

    Args:
        at: At which, from 1 on; 0 only counts.
        error: The error number that it fails with; 0 is SIGKILL before it.
        lasting: Every later one that needs room on the disk fails too.
        counted: What is counted: all operations (``calls``), those that change something (``changes``), or those of them from the
            first rename on that is from or to ``target`` (``after``).
        target: A file's name.
    """

    at: int = 0
    error: int = 0
    lasting: bool = False
    counted: Literal["calls", "changes", "after"] = "calls"
    target: str = ""


class Watch:
    """The hook, with what it has counted so far."""

    def __init__(self, fault: Fault, inside: tuple[Path, ...], report: int) -> None:
        """Take what shall happen, the folders that may be changed, and the descriptor that escapes are written to."""
        self.fault = fault
        self.inside = tuple(str(path.resolve()) for path in inside)
        self.report = report
        self.calls, self.changes, self.after = 0, 0, 0
        self.renamed = False
        self.owner = os.getpid()

    def install(self) -> None:
        """See all file operations of this process and of its forks from now on; there is no way back."""
        sys.addaudithook(self)
        real: Callable[[Any], None] = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            if stat.S_ISREG(os.fstat(number).st_mode) or stat.S_ISDIR(os.fstat(number).st_mode):
                self._operation("fsync", _name_of(number), changing=True)
            real(descriptor)

        vars(os)["fsync"] = fsync

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at one event."""
        number = _PATHS.get(event)
        if number is None:
            return
        if event == "socket.connect":
            if isinstance(args[1], tuple):
                self._refuse("network", str(args[1]))
            return
        first = args[0]
        if not isinstance(first, str | bytes | os.PathLike):
            return  # a descriptor that was opened before
        changing = event not in _READING
        if event == "open":
            changing = bool((args[2] or 0) & _WRITES)
        paths = [_absolute(args[place], _directory_of(event, args)) for place in range(number)]
        if event == "os.symlink":
            paths = paths[1:]  # what a link says is only text
        if changing:
            for path in paths:
                self._keep_inside(event, path)
        if (
            event == "os.rename"
            and self.fault.target
            and self.fault.target in [path.name for path in paths]
        ):
            self.renamed = True
        self._operation(event, paths[-1], changing=changing)

    def _keep_inside(self, event: str, path: Path) -> None:
        whole = path.resolve() if event == "open" else path.parent.resolve() / path.name
        if not str(whole).startswith((*self.inside, *_HARMLESS)):
            self._refuse(event, str(whole))

    def _refuse(self, event: str, what: str) -> None:
        os.write(self.report, f"{event} {what}\n".encode(errors="replace"))
        raise PermissionError(1, "outside the trial's own folder", what)

    def _operation(self, event: str, path: Path, *, changing: bool) -> None:
        """Count an operation, and let happen what is to happen."""
        fault = self.fault
        if os.getpid() != self.owner or not str(path).startswith(self.inside):
            return
        self.calls += 1
        self.changes += changing
        self.after += changing and self.renamed
        number = {"calls": self.calls, "changes": self.changes, "after": self.after}[fault.counted]
        late = fault.lasting and number > fault.at > 0 and changing and event in _FILLING
        due = number == fault.at and (changing or fault.counted == "calls")
        if not (late or due) or (fault.counted == "after" and not self.renamed):
            return
        if fault.error == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        # What is only read needs no room.
        full = fault.error == errno.ENOSPC and not (changing and event in _FILLING)
        error = errno.EIO if full else fault.error
        raise OSError(error, os.strerror(error), str(path))


def _directory_of(event: str, args: tuple[Any, ...]) -> int:
    """Return the descriptor that a path is relative to, -1 for none."""
    place = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2, "os.utime": 3}.get(event)
    return args[place] if place is not None and isinstance(args[place], int) else -1


def _absolute(path: Any, directory: int) -> Path:
    given = Path(os.fsdecode(path if path is not None else "."))
    if directory >= 0 and not given.is_absolute():
        return _name_of(directory) / given
    try:
        return given.absolute()
    except FileNotFoundError:  # the working directory is gone
        return given


def _name_of(descriptor: int) -> Path:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return Path()
