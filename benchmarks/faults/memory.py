"""Memory that runs out, in ten steps."""

import json
import re
from functools import cache
from pathlib import Path

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import command, run
from benchmarks.faults.ground import CUT, WORDS, Ground
from benchmarks.faults.place import LIMIT_SECONDS, Ended, Limits, brief
from benchmarks.faults.scenarios import Bench

_STEPS = 10
_ROWS = ("--batch-size", "64", "--max-length", "120")
_TEXTS = ("wide-llama", "--data", "long.txt", *_ROWS)
_CLASSES = ("wide-bert", "--data", "long.csv", *_ROWS)
_COMMANDS = {
    "score --method ablation": ("score", *_TEXTS, "--method", "ablation", "--run-dir", "run"),
    "eval": ("eval", *_TEXTS, "--json"),
    "prune --reconstruct refit": ("prune", *_CLASSES, *CUT[:2],
        "--method", "magnitude", "--reconstruct", "refit", "--out", "out"),
    "score --method gradient": ("score", *_CLASSES, "--method", "gradient", "--run-dir", "run"),
    "sweep": ("sweep", *_CLASSES, "--methods", "magnitude", "--points", "0.5", "--no-latency", "--out", "sweep"),
    "prune --stream": ("prune", "bert", *CUT, "--stream", "--out", "out", "-q"),
}  # fmt: skip
"""On models whose outputs, or inner layers, are wide: 64 rows of them take a hundred megabytes and more."""

_MEMORY = re.compile(r"memory", re.IGNORECASE)
_FITS = re.compile(r"--max-length \d|--batch-size|--dtype|--device|--stream|more memory")
"""What a user can do about it."""


def _trial(bench: Bench, number: int) -> Outcome:
    names = list(_COMMANDS)
    name = names[(number // _STEPS) % len(names)]
    step = number % _STEPS
    room = int(_needed(bench.ground, name) * (step + 0.5) / _STEPS)
    _lay_out(bench.ground)
    limits = Limits(2 * LIMIT_SECONDS, memory=max(room, 1 << 20))
    ended = run(bench.place, command(*_COMMANDS[name]), limits=limits)
    what = f"{limits.memory / 1e6:.0f} MB more, step {step + 1} of {_STEPS}: "
    problem = ended.problem(codes=(0, 2)) or _unnamed(ended)
    halved = "going on with batches in" in ended.err
    done = "done in smaller batches" if halved else "done"
    note = done if ended.code == 0 else "told what would fit"
    return Outcome(name, problem and what + problem, note)


def _unnamed(ended: Ended) -> str:
    if ended.code == 2 and not (_MEMORY.search(ended.err) and _FITS.search(ended.err)):
        return f"memory, or what would fit, isn't named: {brief(ended.err)}"
    return ""


@cache
def _needed(ground: Ground, name: str) -> int:
    """Return how much more address space an undisturbed run takes than this process has."""
    _lay_out(ground)
    ended = run(ground.place, command(*_COMMANDS[name]), limits=Limits(4 * LIMIT_SECONDS))
    if problem := ended.problem(codes=(0,)):
        raise RuntimeError(f"{name} fails with all memory: {problem}")
    return ended.memory


def _lay_out(ground: Ground) -> Path:
    work = ground.lay_out("bert", "wide-bert", "wide-llama", "scores.json")
    draw = ground.draw("memory's rows", 0)
    rows = [" ".join(draw.choices(WORDS, k=130)) for _ in range(96)]
    (work / "long.txt").write_text("\n".join(rows), encoding="utf-8")
    lines = [f"{json.dumps(row)},{number % 2}" for number, row in enumerate(rows)]
    (work / "long.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return work


CAMPAIGN = Campaign(
    "memory",
    promise="Where memory runs out the batch is halved and the work goes on, or the command leaves with 2 and says what would "
    "fit; never a traceback (P6).",
    tried="The address space capped, in ten steps from nothing more than is there to what the undisturbed run takes.",
    full=60,
    quick=53,
    weight=3,
    trial=_trial,
)
