"""Directories of strangers: no code of theirs runs, nothing outside is read or changed, and nothing takes for ever."""

import re
import shutil
from pathlib import Path

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import command, run
from benchmarks.faults.evil import RAN, SCENES, SECRET, Scene
from benchmarks.faults.place import LIMIT_SECONDS, Ended, Limits
from benchmarks.faults.scenarios import Bench, listing

_ROOM = 8 << 30
_ROWS = ("--data", "train.csv", "--limit", "8", "-q")
_CUT = ("--keep", "0.5", "--reconstruct", "none", "--out", "out")
_HEAL = ("heal", "model", "--max-steps", "1", "--limit", "8", "--out", "out", "-q")
_COMMANDS = (
    ("eval", "model", "--data", "test.csv", "--json", "-q"),
    ("prune", "model", *_ROWS, "--eval-data", "test.csv", *_CUT, "--method", "magnitude"),
    ("inspect", "model", "-q"),
    _HEAL,
    ("score", "model", *_ROWS, "--run-dir", "run"),
    ("eval", "bert", "--data", "model", "-q"),
    ("prune", "model", *_CUT, "--scores", "scores.json", "--stream", "-q"),
)
_NAMES = (
    "o[ut]*?",
    "a b",
    "[red]x[/red]",
    "*",
    "out?",
    "-o",
    "ö" * 100,
    "x" * 240,
    "..out",
    "{out}",
    "%s",
    "$HOME",
)


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("hostile", number)
    names = [*SCENES, "names"]
    kind = names[number % len(names)]
    if kind == "names":
        return _strange_name(bench, number)
    work = bench.ground.lay_out("bert", "train.csv", "test.csv", "scores.json")
    base = draw.choice(("bert", "pruned", "pruned"))
    bench.ground.copy(base, work / "model")
    outside = bench.place.outside
    (outside / "id_rsa").write_text(SECRET, encoding="utf-8")
    SCENES[kind](Scene(work / "model", work, outside, draw))
    words = draw.choice(_COMMANDS)
    if kind == "a metric in the record" and draw.random() < 0.6:
        words = _HEAL
    before = listing(outside)
    kept = _texts(work)
    ended = run(bench.place, command(*words), limits=Limits(LIMIT_SECONDS, memory=_ROOM))
    problem = _wrong(ended, work, kept)
    if not problem and listing(outside) != before:
        problem = "what lies outside was changed"
    note = {0: "done", 1: "a proof said no"}.get(ended.code, "named")
    return Outcome(kind, f"{' '.join(words[:2])}: {problem}" if problem else "", note)


def _wrong(ended: Ended, work: Path, before: set[Path]) -> str:
    if (work / RAN).exists():
        return f"code of a stranger RAN (exit {ended.code})"
    if SECRET in ended.out or SECRET in ended.err:
        return "what lies outside was printed"
    for path in _texts(work) - before:
        if SECRET in path.read_bytes().decode(errors="replace"):
            return f"what lies outside was copied into {path.relative_to(work)}"
    for path in (work / "out").rglob("*.json") if (work / "out").is_dir() else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        # A class' name alone, as tokenizer_class has it, is no code; where it lies would be.
        if "stranger/" in text or re.search(r"\w_evil\.", text):
            return f"{path.relative_to(work)} names a stranger's code"
    return ended.problem(codes=(0, 1, 2))


def _texts(work: Path) -> set[Path]:
    """Return all plain files; links aren't followed."""
    return {path for path in work.rglob("*") if path.is_file() and not path.is_symlink()}


def _strange_name(bench: Bench, number: int) -> Outcome:
    """Use a strange name for the model and the output; what a pattern of that name would match stays."""
    draw = bench.ground.draw("names", number)
    name = draw.choice(_NAMES)
    work = bench.ground.lay_out("bert", "scores.json")
    safe = f"./{name}"
    shutil.move(work / "bert", work / "m[1]")
    beside = work / ".out.headprune-tmp-1-mine"
    beside.mkdir()
    (beside / "thesis.tex").write_text("years of work", encoding="utf-8")
    (work / "out1").mkdir()
    (work / "out1" / "thesis.tex").write_text("years of work", encoding="utf-8")
    before = listing(work)
    words = ("prune", "./m[1]", *_CUT[:-1], safe, "--scores", "scores.json", "--stream", "-q")
    ended = run(bench.place, command(*words))
    after = listing(work)
    lost = sorted(path for path in before if after.get(path) != before[path])
    problem = ended.problem(codes=(0, 2))
    if not problem and ended.code == 0 and f"{name}/model.safetensors" not in after:
        problem = f"exit 0, and there is no {name}"
    if not problem and lost:
        problem = f"{lost[0]} is gone or changed"
    return Outcome(
        "names", problem and f"--out {safe}: {problem}", "named" if ended.code else "done"
    )


CAMPAIGN = Campaign(
    "hostile",
    promise="No code of a directory, a record or data runs; nothing outside is read into what is written or printed, nothing "
    "outside is changed; everything ends within 30 s, in three parts where it is refused (P7).",
    tried="Directories with code in every place that might be run, links and paths out, pipes, pickles, adapters, absurd sizes, "
    "depths and headers, thousands of files, strange names.",
    full=400,
    quick=0,
    weight=6,
    trial=_trial,
)
