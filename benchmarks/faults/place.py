"""Where a trial happens, how its process ended, and what is lawful about that."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LIMIT_SECONDS = 30.0
_THREE_PARTS = re.compile(r"^error: .+\n(?:.*\n)*?  in:   .+\n(?:.*\n)*?  try:  .+", re.MULTILINE)
_USAGE = re.compile(
    r"^Usage: |^Error: (No such|Got|Option|Missing|Invalid|Unexpected)", re.MULTILINE
)


@dataclass(frozen=True)
class Place:
    """The folders of one trial. Nothing outside of ``work``, ``temporary`` and ``home`` may be changed by it."""

    base: Path

    @property
    def work(self) -> Path:
        """The working directory."""
        return self.base / "work"

    @property
    def temporary(self) -> Path:
        """What TMPDIR names."""
        return self.base / "tmp"

    @property
    def home(self) -> Path:
        """What HOME and HF_HOME name."""
        return self.base / "home"

    @property
    def outside(self) -> Path:
        """What belongs to somebody else."""
        return self.base / "outside"

    @property
    def streams(self) -> Path:
        """What a trial printed, and what is told of it."""
        return self.base.with_name(f"{self.base.name}-streams")

    def renew(self) -> None:
        """Remove what the last trial left."""
        shutil.rmtree(self.base, ignore_errors=True)
        for folder in (self.work, self.temporary, self.home, self.outside, self.streams):
            folder.mkdir(parents=True, exist_ok=True)
        # All trials note rows by one key, as all commands of a user do.
        key = self.home / ".local" / "state" / "headprune" / "row-key"
        key.parent.mkdir(parents=True)
        key.write_bytes(bytes(range(32)))


class Ended(NamedTuple):
    """How a process ended.

    ``code`` is negative for a signal; ``calls``, ``changes`` and ``after`` are counts of file
    operations (:class:`~benchmarks.faults.watch.Fault`); ``memory`` is the address space that it took besides.
    """

    code: int
    out: str
    err: str
    seconds: float
    calls: int
    changes: int
    after: int
    escaped: tuple[str, ...]
    hung: bool
    modules: tuple[str, ...]
    memory: int

    def problem(self, *, codes: Sequence[int] = (0, 2)) -> str:
        """Return what isn't lawful about the end; nothing where all is well."""
        if self.escaped:
            return f"touched what is outside: {self.escaped[0]}"
        if self.hung:
            return f"no end after {self.seconds:.0f} s"
        if "something unexpected" in self.err or "Traceback (most recent" in self.err:
            return f"exit {self.code}: {brief(self.err)}"
        if self.code not in codes:
            return f"exit {self.code}: {brief(self.err) or 'nothing said'}"
        if self.code == 2 and not is_three_part(self.err):
            return f"exit 2 without its three parts: {brief(self.err) or 'nothing said'}"
        return ""


def is_three_part(err: str) -> bool:
    """Whether an error says what, where and what to do; the options' own parser says the command's usage instead."""
    return bool(_THREE_PARTS.search(err) or _USAGE.search(err))


def brief(text: str) -> str:
    """Return the end of a text, in a line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    shown = lines[starts[-1] :] if starts else lines[-2:]
    return " | ".join(shown)[:220]


class Limits(NamedTuple):
    """What a process is not given: seconds, bytes of address space more than it has, bytes in a file (0: no limit)."""

    seconds: float = LIMIT_SECONDS
    memory: int = 0
    file_size: int = 0


def read(path: Path) -> str:
    """Return a file's text; nothing where there is none."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
