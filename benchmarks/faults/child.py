"""Run something in a fork of this warm process: what it printed, how it ended, what it touched.

Importing torch and transformers takes seconds and a fork milliseconds, so that thousands of trials fit into an hour.
"""

import fcntl
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.place import Ended, Limits, Place, read
from benchmarks.faults.warm import constants, fork_fresh_processes
from benchmarks.faults.watch import Fault, Watch

Action = Callable[[], None]
_TRACEBACK = 98
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class Running(NamedTuple):
    """A process that was started."""

    pid: int
    files: Path
    started: float
    limits: Limits
    pipes: tuple[int, ...] = ()

    def wait(
        self, *, blow: float | None = None, number: int = signal.SIGKILL, caught: bool = False
    ) -> Ended:
        """Wait for the end; ``blow`` seconds after it has begun send signal ``number``, and at the limit kill it.

        With ``caught`` it has begun once it catches SIGTERM: before that nobody could say anything, it is Python's.
        """
        hung, begun = False, 0.0
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            now = time.monotonic()
            if blow is not None and not begun and (self.files / "begun").exists():
                begun = now if not caught or catches_termination(self.pid) else 0.0
            if blow is not None and begun and now - begun >= blow:
                os.kill(self.pid, number)
                blow = None
            if now - self.started > self.limits.seconds:
                hung = True
                _kill_all(self.pid)
            time.sleep(0.003)
        _kill_all(self.pid)
        for pipe, name in zip(self.pipes, ("out", "err"), strict=False):
            with open(pipe, "rb") as stream:  # noqa: PTH123 - a descriptor
                (self.files / name).write_bytes(stream.read())
        told = dict(
            line.partition("=")[::2] for line in read(self.files / "told").splitlines() if line
        )
        return Ended(
            code=os.waitstatus_to_exitcode(status),
            out=read(self.files / "out"),
            err=read(self.files / "err"),
            seconds=time.monotonic() - self.started,
            calls=int(told.get("calls", 0)),
            changes=int(told.get("changes", 0)),
            after=int(told.get("after", 0)),
            escaped=tuple(read(self.files / "escaped").splitlines()),
            hung=hung,
            modules=tuple(told.get("modules", "").split()),
            memory=int(told.get("memory", 0)),
        )


def command(*words: str | Path) -> Action:
    """Return what runs the command line."""

    def act() -> None:
        from headprune.cli import main

        sys.argv = ["headprune", *map(str, words)]
        main()

    return act


def reading(function: Callable[[], Any]) -> Action:
    """Return what reads something, and leaves as the command line does where that is refused."""

    def act() -> None:
        from headprune.errors import HeadpruneError

        try:
            print(function())
        except HeadpruneError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)

    return act


def run(
    place: Place, action: Action, *, fault: Fault | None = None, limits: Limits | None = None
) -> Ended:
    """Run something to its end."""
    return start(place, action, fault=fault, limits=limits).wait()


def start(
    place: Place,
    action: Action,
    *,
    fault: Fault | None = None,
    limits: Limits | None = None,
    name: str = "a",
) -> Running:
    """Start something in ``place``; ``name`` tells its output from that of another that runs there at the same time."""
    files = place.streams / name
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    limits = limits or Limits()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is printed must not be cut where files may not grow: a pipe isn't a file.
    pipes = [_wide_pipe(), _wide_pipe()] if limits.file_size else []
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        writes = [write for _, write in pipes]
        _child(place, action, fault=fault or Fault(), limits=limits, files=files, writes=writes)
    for _, write in pipes:
        os.close(write)
    return Running(pid, files, started, limits, tuple(read for read, _ in pipes))


def _wide_pipe() -> tuple[int, int]:
    """Return a pipe that holds all that a trial prints, for it is read at the end."""
    reading, writing = os.pipe()
    if sys.platform == "linux":
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    return reading, writing


def _child(
    place: Place,
    action: Action,
    *,
    fault: Fault,
    limits: Limits,
    files: Path,
    writes: Sequence[int],
) -> None:
    """Be the child; never returns."""
    code = _TRACEBACK
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            default = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if default else signal.SIG_DFL)
        _redirect(writes or [os.open(files / name, _APPEND) for name in ("out", "err")])
        _settle(place)
        escaped = os.open(files / "escaped", _APPEND)
        told = os.open(files / "told", _APPEND)
        watch = Watch(fault, (place.work, place.temporary, place.home, files), escaped)
        fork_fresh_processes(files, _lawfully)
        _limit(limits)
        size = _status("VmSize:")
        (files / "begun").touch()
        watch.install()
        code = _lawfully(action)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        counts = f"calls={watch.calls}\nchanges={watch.changes}\nafter={watch.after}\n"
        taken = f"memory={_status('VmPeak:') - size}\nmodules={' '.join(sys.modules)}\n"
        os.write(told, f"{counts}{taken}".encode())
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as if it were its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def _lawfully(action: Action) -> int:
    """Run the action; return its exit code, as the interpreter would leave with it."""
    try:
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:  # noqa: BLE001 - reported as a traceback, which is what it would have been
        traceback.print_exc()
        code = _TRACEBACK
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code


def _redirect(writes: Sequence[int]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in zip((1, 2), writes, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def _settle(place: Place) -> None:
    """Make everything that libraries keep for themselves lie in the trial's own folder."""
    moved = constants()
    names = {"HOME": place.home, "HF_HOME": place.home, "MPLCONFIGDIR": place.home}
    here = {**names, "TMPDIR": place.temporary}
    os.environ.update({name: str(path) for name, path in here.items()})
    os.chdir(place.work)
    tempfile.tempdir = str(place.temporary)
    sys.dont_write_bytecode = True
    moved.move("", place.home)


def _limit(limits: Limits) -> None:
    if limits.file_size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size, hard))
    if limits.memory:
        cap = _status("VmSize:") + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (cap, cap))


def _status(name: str) -> int:
    """Return a number of bytes that the system tells of this process; 0 where it tells none."""
    for line in read(Path("/proc/self/status")).splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def catches_termination(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; taken for granted where the system doesn't tell."""
    for line in read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


def _kill_all(pid: int) -> None:
    """Kill what is left of a process' group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
