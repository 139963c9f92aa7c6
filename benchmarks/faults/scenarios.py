"""The commands that write: what each is given, where it writes, and what may be there afterwards."""

import errno
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.child import Action, command, run
from benchmarks.faults.ground import CUT, DATA, Ground
from benchmarks.faults.place import Ended, Place, brief
from benchmarks.faults.watch import Fault

_STABLE = re.compile(r"\.(safetensors|gguf)$|(^|/)(scores\.json|baseline\.json|config\.json)$")
"""Files that are the same bytes whenever they are made; others hold times and hashes of such."""

Files = Mapping[str, str]
"""Hashes by path; a directory has none."""

_BY_KEY = re.compile(rb'"[0-9a-f]{24}",?\s*|"sha256": "[0-9a-f]{64}",?\s*')
"""Hashes of rows by this machine's key, which is another one where a fault hits it; and what follows from them."""

_TEMPORARY = re.compile(r"\.headprune-tmp-[^/]*$")
"""What only a next writer cleans away."""

_KEPT_ASIDE = re.compile(r"\.(replaced|unplaced|unproven)(-\d+)?$")


class Scenario(NamedTuple):
    """One way of writing.

    Args:
        name: What it is called in reports.
        words: The command; none is ``headprune.save``.
        inputs: What lies in the working directory.
        target: What is written.
        replaces: What lies at the target before, if anything.
    """

    name: str
    words: tuple[str, ...]
    inputs: tuple[str, ...]
    target: str
    replaces: str = ""

    def action(self, ground: Ground) -> Action:
        """Return what runs it."""
        return command(*self.words) if self.words else lambda: _save(ground, bool(self.replaces))

    def lay_out(self, ground: Ground) -> Files:
        """Put everything in its place; return what lies there."""
        work = ground.lay_out(*self.inputs)
        if self.replaces:
            ground.copy(self.replaces, work / self.target)
        return listing(work)


class Reference(NamedTuple):
    """What an undisturbed run leaves, how long it takes, and how many file operations.

    Args:
        files: All that lies in the working directory then.
        calls: File operations.
        changes: Those that change something.
        after: Those of them from the first rename of the target on.
        seconds: From start to end.
    """

    files: Files
    calls: int
    changes: int
    after: int
    seconds: float


_BERT = ("bert", "train.csv", "test.csv", "scores.json")
_PRUNE = ("prune", "bert", *DATA, *CUT, "-q", "--out", "out")
_STREAM = ("prune", "bert", *CUT, "--stream", "-q", "--out", "out")
_HEAL = ("heal", "pruned", "--max-steps", "1", "--limit", "8", "-q", "--out", "out")
_HEALED = ("pruned", "bert", "train.csv", "test.csv")
_SCORE = ("score", "bert", "--data", "train.csv", "--limit", "8", "-q", "--batch-size", "2")
_EXPORT = ("export", "llama", "--no-tokenizer", "-q", "--gguf", "model.gguf")
_CHECK = ("check", "results.json", "--baseline", "baseline.json", "--update-baseline", "-q")
_OVER = ("--overwrite",)

SCENARIOS = (
    Scenario("hp.save", (), (), "out", "old"),
    Scenario("check --update-baseline", _CHECK, ("results.json",), "baseline.json", "old-baseline.json"),
    Scenario("export", (*_EXPORT, *_OVER), ("llama",), "model.gguf", "old.gguf"),
    Scenario("prune --stream", (*_STREAM, *_OVER), ("bert", "scores.json"), "out", "old"),
    Scenario("score", (*_SCORE, "--run-dir", "run", "--method", "ablation"), ("bert", "train.csv"), "run"),
    Scenario("prune", (*_PRUNE, *_OVER), _BERT, "out", "old"),
    Scenario("heal", (*_HEAL, *_OVER), _HEALED, "out", "old"),
    Scenario("hp.save, new", (), (), "out"),
    Scenario("export, new", _EXPORT, ("llama",), "model.gguf"),
    Scenario("prune, new", _PRUNE, _BERT, "out"),
)  # fmt: skip
REPLACING = tuple(scenario for scenario in SCENARIOS if scenario.replaces == "old")
"""Those that put a directory in the place of another, by two renames."""


def _save(ground: Ground, overwrite: bool) -> None:
    import headprune

    model = headprune.load(ground.folder / "pruned")
    headprune.save(model, "out", overwrite=overwrite)


class Bench:
    """Runs scenarios, and remembers what an undisturbed run of each leaves."""

    def __init__(self, ground: Ground) -> None:
        """Take the ground that trials happen on."""
        self.ground = ground
        self.until = math.inf
        """When a trial that can end early does so, by the monotonic clock."""
        self.reference: Callable[[Scenario], Reference] = cache(self._reference)

    @property
    def place(self) -> Place:
        """Where trials happen."""
        return self.ground.place

    def _reference(self, scenario: Scenario) -> Reference:
        scenario.lay_out(self.ground)
        count = Fault(target=scenario.target)
        ended = run(self.place, scenario.action(self.ground), fault=count)
        if problem := ended.problem(codes=(0,)):
            raise RuntimeError(f"{scenario.name} fails without any fault: {problem}")
        files = listing(self.place.work)
        return Reference(files, ended.calls, ended.changes, ended.after, ended.seconds)

    def standing(self, scenario: Scenario) -> str:
        """Say what lies at the target: ``old``, ``new``, ``absent``, or what is half about it."""
        files = listing(self.place.work)
        now = {n: d for n, d in _below(files, scenario.target).items() if not _TEMPORARY.search(n)}
        if not now or (set(now) == {scenario.target} and now[scenario.target] == ""):
            return "absent"
        if scenario.name == "score" and f"{scenario.target}/scores.json" not in now:
            return "absent"  # results of single batches, which a later run goes on from
        expected = _below(self.reference(scenario).files, scenario.target)
        if scenario.replaces and now == _old(self.ground, scenario):
            return "old"
        if missing := set(expected) - set(now):
            return f"half: {min(missing)} is missing"
        if more := set(now) - set(expected):
            if scenario.name == "score" and all("partial" in name for name in more):
                return "new"
            return f"half: {min(more)} is too much"
        other = [name for name in now if _STABLE.search(name) and now[name] != expected[name]]
        return f"half: {min(other)} isn't what it is otherwise" if other else "new"

    def changed(self, scenario: Scenario, before: Files) -> str:
        """Say what was changed beside the target."""
        now = listing(self.place.work)
        for name, digest in before.items():
            if name != scenario.target and not name.startswith(f"{scenario.target}/"):
                if name not in now:
                    return f"{name} is gone"
                if now[name] != digest:
                    return f"{name} was changed"
        return ""

    def run_again(self, scenario: Scenario) -> str:
        """Run undisturbed, as a user would after a failure; say what is wrong about it."""
        standing = self.standing(scenario)
        ended = run(self.place, scenario.action(self.ground))
        if ended.code == 2 and "--resume" in ended.err and "--resume" not in scenario.words:
            ended = run(self.place, command(*scenario.words, "--resume"))
        if standing == "new" and not scenario.replaces:
            # It was there already, and isn't replaced unasked.
            wrong = ended.problem(codes=(0, 2)) if scenario.words else ""
            # Refused, so that it cleans up no results of single batches.
            if wrong or scenario.name in ("score", "sweep"):
                return wrong and f"run again: {wrong}"
            return self._left_over(scenario)
        if problem := ended.problem(codes=(0,)):
            return f"run again: {problem}"
        if (after := self.standing(scenario)) != "new":
            return f"run again: the target is {after}"
        return self._left_over(scenario)

    def _left_over(self, scenario: Scenario) -> str:
        """Say what lies there that an undisturbed run doesn't leave."""
        left = sorted(set(listing(self.place.work)) - set(self.reference(scenario).files))
        # What couldn't take its place, or was found when it was thought to be lost, is kept: nothing of it may go.
        left = [name for name in left if not _KEPT_ASIDE.search(name.partition("/")[0])]
        return f"run again: {left[0]} is left over" if left else ""

    def survives(self, scenario: Scenario) -> str:
        """Where the target is gone, let a next run fail at its last step, and say whether the old content is lost then."""
        if not scenario.replaces or self.standing(scenario) != "absent":
            return ""
        last_step = Fault(1, errno.EIO, counted="after", target=scenario.target)
        run(self.place, scenario.action(self.ground), fault=last_step)
        if self.standing(scenario) in ("old", "new"):
            return ""
        old = {name: digest for name, digest in _old(self.ground, scenario).items() if digest}
        new = _below(self.reference(scenario).files, scenario.target)
        here = set(listing(self.place.work).values())
        for files in (old, new):
            if all(digest in here for name, digest in files.items() if _STABLE.search(name)):
                return ""
        return "old and new are both gone after a next run that failed"


def lawful(scenario: Scenario, ended: Ended) -> str:
    """Say what is wrong about how a disturbed run ended: it must end well, or say in three parts what happened."""
    if scenario.words or ended.code == 0 or ended.hung or ended.escaped:
        return ended.problem(codes=(0, 2))
    if re.search(r"^headprune\.errors\.\w+: ", ended.err, re.MULTILINE):
        return ""
    return f"hp.save raises {brief(ended.err)}"


@cache
def _old(ground: Ground, scenario: Scenario) -> Files:
    source = ground.folder / scenario.replaces
    if source.is_file():
        return {scenario.target: _digest(source)}
    inner = {f"{scenario.target}/{name}": digest for name, digest in listing(source).items()}
    return {scenario.target: "", **inner}


def _below(files: Files, target: str) -> Files:
    return {n: d for n, d in files.items() if n == target or n.startswith(f"{target}/")}


def listing(folder: Path) -> Files:
    """Return all that lies in a folder: files with their hashes, links with what they say, directories with nothing."""
    return {str(p.relative_to(folder)): _digest(p) for p in sorted(folder.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.is_file():
        content = path.read_bytes()
        if path.name == "scores.json":
            content = _BY_KEY.sub(b"", content)
        return hashlib.sha256(content).hexdigest()
    return "" if path.is_dir() else "special"
