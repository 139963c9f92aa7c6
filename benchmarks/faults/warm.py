"""What makes trials quick: everything is imported once, and every trial is a fork."""

import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.place import read

_FIRST = (
    "headprune.cli",
    "headprune.api",
    "headprune.workflows.prune",
    "headprune.workflows.heal",
    "headprune.export",
    "headprune.report.heads",
    "headprune.report.terminal",
    "datasets",
    "evaluate",
)
PICTURES = (
    "headprune.report.sweeps",
    "matplotlib.figure",
    "matplotlib.ticker",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)
"""What ``sweep`` draws with: it takes seconds for its list of fonts alone."""


def import_all(names: Iterable[str] = _FIRST) -> None:
    """Import modules by name; one that can't be imported again under its name is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name in sys.modules:
                continue
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - a lazy module of a library; the trial imports it again
                continue
    gc.collect()
    gc.freeze()


class Constants:
    """The paths below a folder that libraries took from the environment when they were imported."""

    def __init__(self, folder: Path) -> None:
        """Find them once: there are thousands of modules."""
        self.folder = str(folder)
        self.places = [
            (module, key)
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in ("datasets", "evaluate", "huggingface_hub", "transformers")
            for key, value in list(vars(module).items())
            if isinstance(value, str | Path) and str(value).startswith(self.folder)
        ]

    def move(self, part: str, to: Path) -> None:
        """Make those below ``part`` of the folder lie below ``to``, in this process."""
        old = f"{self.folder}{part}"
        for module, key in self.places:
            value = vars(module)[key]
            if str(value).startswith(old):
                setattr(module, key, type(value)(str(value).replace(old, str(to), 1)))
        self.folder = self.folder if part else str(to)


@cache
def constants() -> Constants:
    """Return the paths of libraries below ``HF_HOME``, as they were when everything was imported."""
    return Constants(Path(os.environ["HF_HOME"]))


def fork_fresh_processes(files: Path, lawfully: Callable[[Callable[[], None]], int]) -> None:
    """Let the process that loads a saved model afresh be a fork too: it has imported already, and nothing else differs.

    Args:
        files: Where its output goes.
        lawfully: Runs a function and returns its exit code.
    """
    real = subprocess.run

    def run_in_fork(words: Any, *args: Any, **settings: Any) -> Any:
        if len(words) != 4 or not str(words[2]).endswith("fresh_process.py"):
            return real(words, *args, **settings)
        out, err = files / "fresh-out", files / "fresh-err"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number, path in ((1, out), (2, err)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                os.chdir(settings["cwd"])
                os.environ.update(settings["env"])
                constants().move("/modules", Path(settings["env"]["HF_MODULES_CACHE"]))
                sys.argv = [str(word) for word in words[2:]]
                code = lawfully(lambda: _run_file(str(words[2])))
            finally:
                os._exit(code)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except BaseException:  # a signal to stop: subprocess.run kills its child, too
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise
        return subprocess.CompletedProcess(words, code, read(out), read(err))

    vars(subprocess)["run"] = run_in_fork


def _run_file(path: str) -> None:
    runpy.run_path(path, run_name="__main__")
