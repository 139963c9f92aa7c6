"""Bit flips and cuts in every file that is read."""

import re
from functools import cache, partial
from pathlib import Path
from random import Random

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import Action, command, reading, run, start
from benchmarks.faults.ground import CUT, Ground
from benchmarks.faults.place import Ended
from benchmarks.faults.rows import read_rows
from benchmarks.faults.scenarios import Bench
from benchmarks.faults.watch import Fault

_EVAL = ("--data", "test.csv", "--json", "-q")
_CHECK = ("check", "results.json", "--baseline", "baseline.json", "--json", "-q")
_SCORE = ("score", "bert", "--data", "train.csv", "--limit", "8", "--batch-size", "2", "-q")
_RESUMED = (*_SCORE, "--method", "ablation", "--run-dir", "run")
_TIMES = re.compile(r'"latency_ms": \{(?:[^{}]|\{[^{}]*\})*\}|"sha256": "[0-9a-f]*",?')
_BASE = ("results.json", "baseline.json", "recipe.yaml")
_CHECKED = ("scores.json", "results.json", "baseline.json")
_PLAIN: dict[str, tuple[Action, tuple[str, ...]]] = {
    "scores.json": (command("prune", "bert", *CUT, "--stream", "--dry-run", "--json", "-q"), ("bert",)),
    "results.json": (command(*_CHECK), _BASE),
    "baseline.json": (command(*_CHECK), _BASE),
    "recipe.yaml": (command("check", "-c", "recipe.yaml", "--json", "-q"), _BASE),
    **{
        name: (reading(partial(read_rows, name)), ())
        for name in ("train.csv", "rows.tsv", "rows.jsonl", "rows.parquet", "rows.txt")
    },
}  # fmt: skip
"""What reads a file that stands alone, and what that needs besides."""


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("damage", number)
    turn = number % 20
    if turn < 9:
        return _sealed(bench, draw)
    if turn == 9:
        return _journal(bench, draw)
    if turn == 10:
        return _weights(bench, draw)
    return _plain(bench, draw, list(_PLAIN)[(number // 20 * 9 + turn) % len(_PLAIN)])


def _sealed(bench: Bench, draw: Random) -> Outcome:
    """Damage a file of a directory that headprune saved: named, or nothing reads it."""
    undamaged = _undamaged(bench.ground, "pruned")
    work = bench.ground.lay_out("pruned", "test.csv")
    path = draw.choice(sorted(path for path in (work / "pruned").rglob("*") if path.is_file()))
    what = damage(path, draw)
    ended = run(bench.place, command("eval", "pruned", *_EVAL))
    kind = f"saved directory: {path.name}"
    if problem := ended.problem(codes=(0, 2)):
        return Outcome(kind, f"{path.name}, {what}: {problem}")
    if ended.code == 2:
        return Outcome(kind, "", "named")
    same = _numbers(ended) == undamaged
    return Outcome(
        kind, "" if same else f"{path.name}, {what}: other numbers, nothing said", "without effect"
    )


def _weights(bench: Bench, draw: Random) -> Outcome:
    """Cut the weights of a directory that transformers saved: it has no checksum, and lengths must fit all the same."""
    work = bench.ground.lay_out("bert", "test.csv")
    path = work / "bert" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    ended = run(bench.place, command("eval", "bert", *_EVAL))
    problem = ended.problem(codes=(2,))
    return Outcome("weights of others, cut", problem, "named")


def _journal(bench: Bench, draw: Random) -> Outcome:
    """Damage what an interrupted scoring left: named or computed again, the scores are the same bytes."""
    ground = bench.ground
    stop, scores = _stop_at(ground), _scores(ground)
    work = ground.lay_out("bert", "train.csv")
    kind = "results of single batches"
    started = start(bench.place, command(*_RESUMED), fault=Fault(stop, counted="changes"))
    started.wait()
    pieces = sorted((work / "run").rglob("*.safetensors"))
    if not pieces:
        return Outcome(kind, "", "nothing was left to damage")
    what = damage(draw.choice(pieces), draw)
    ended = run(bench.place, command(*_RESUMED))
    if problem := ended.problem(codes=(0, 2)):
        return Outcome(kind, f"{what}: {problem}")
    if ended.code == 2:
        return Outcome(kind, "", "named")
    same = (work / "run" / "scores.json").read_bytes() == scores
    return Outcome(kind, "" if same else f"{what}: other scores, nothing said", "without effect")


def _plain(bench: Bench, draw: Random, name: str) -> Outcome:
    """Damage a document, a recipe or rows: what headprune wrote carries a checksum; what the user writes is what it then says."""
    action, needed = _PLAIN[name]
    undamaged = _plainly(bench.ground, name)
    work = bench.ground.lay_out(*{name, *needed})
    what = damage(work / name, draw)
    ended = run(bench.place, action)
    codes = (0, 1, 2) if needed == _BASE else (0, 2)
    if problem := ended.problem(codes=codes):
        return Outcome(name, f"{name}, {what}: {problem}")
    if ended.code == 2:
        return Outcome(name, "", "named")
    if _numbers(ended) == undamaged:
        return Outcome(name, "", "without effect")
    if name in _CHECKED:
        return Outcome(name, f"{name}, {what}: other numbers, nothing said")
    return Outcome(name, "", "the user's own text, read as what it then says")


def damage(path: Path, draw: Random) -> str:
    """Flip a bit, cut the end off, or blank a stretch; return what was done."""
    content = bytearray(path.read_bytes())
    where = draw.randrange(len(content)) if content else 0
    way = draw.random()
    if way < 0.6 and content:
        bit = draw.randrange(8)
        content[where] ^= 1 << bit
        what = f"bit {bit} of byte {where}"
    elif way < 0.9:
        del content[where:]
        what = f"cut to {where} bytes"
    else:
        length = draw.randint(1, 64)
        content[where : where + length] = bytes(min(length, len(content) - where))
        what = f"{length} zeros from byte {where} on"
    path.write_bytes(content)
    return what


def _numbers(ended: Ended) -> str:
    """Return what was printed, without times, and without the checksum of a document that has some."""
    return _TIMES.sub("", ended.out)


@cache
def _undamaged(ground: Ground, model: str) -> str:
    ground.lay_out(model, "test.csv")
    return _numbers(run(ground.place, command("eval", model, *_EVAL)))


@cache
def _plainly(ground: Ground, name: str) -> str:
    action, needed = _PLAIN[name]
    ground.lay_out(*{name, *needed})
    return _numbers(run(ground.place, action))


@cache
def _scores(ground: Ground) -> bytes:
    work = ground.lay_out("bert", "train.csv")
    run(ground.place, command(*_RESUMED))
    return (work / "run" / "scores.json").read_bytes()


@cache
def _stop_at(ground: Ground) -> int:
    """Return the file operation at which a scoring has kept about half of its batches."""
    ground.lay_out("bert", "train.csv")
    changes = run(ground.place, command(*_RESUMED), fault=Fault()).changes
    return changes * 2 // 3


CAMPAIGN = Campaign(
    "damage",
    promise="A damaged file of a directory that headprune saved, of an interrupted run, scores, results, a baseline, or weights "
    "that were cut are named, or the results are the same. What the user writes, a recipe or rows, carries no checksum: it is "
    "named, or read as what it then says (P6).",
    tried="A bit flipped, the end cut off, or a stretch blanked, in every file that is read.",
    full=5000,
    quick=0,
    weight=20,
    trial=_trial,
)
