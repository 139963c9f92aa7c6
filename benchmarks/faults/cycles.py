"""Prune, save, load, again and again in one process: nothing grows."""

import gc
import json
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import run
from benchmarks.faults.place import Limits
from benchmarks.faults.scenarios import Bench

_FULL, _QUICK, _FEWEST = 1000, 8, 5
_GROWTH_BYTES = 8192
"""A cycle may not take more than this for good; the model's weights are about 40 kB."""


def _trial(bench: Bench, number: int) -> Outcome:
    cycles = _FULL if number == 0 else _QUICK
    bench.ground.lay_out("bert")

    def act() -> None:
        print(json.dumps(_cycle(bench.place.base, cycles, until=bench.until)))

    ended = run(bench.place, act, limits=Limits(seconds=1800))
    if problem := ended.problem(codes=(0,)):
        return Outcome("prune, save, load", problem)
    held = json.loads(ended.out)
    return Outcome("prune, save, load", _grown(held), "no growth", held[-1]["cycle"] + 1)


def _cycle(base: Path, cycles: int, *, until: float) -> list[dict[str, int]]:
    """Return what the process holds after every so many cycles."""
    import headprune

    found: list[dict[str, int]] = []
    for number in range(cycles):
        model = headprune.load("bert")
        headprune.prune(model, [f"L{number % 2}.H{number % 4}"])
        headprune.save(model, "out", overwrite=number > 0)
        model = headprune.load("out")
        last = number == cycles - 1 or (time.monotonic() > until and len(found) > _FEWEST)
        if number % max(cycles // 50, 2) == 0 or last:
            found.append({"cycle": number, **_held(base, model)})
        if last:
            break
    return found


def _held(base: Path, model: Any) -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    hooks = [
        name for name, value in vars(model).items() if name.endswith("_hooks") and value is not None
    ]
    return {
        "bytes": int(resident.split()[1]) * 1024,
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": _threads(),
        "modules": sum(type(thing).__module__.startswith("transformers.models") for thing in gc.get_objects()),
        "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in hooks),
        "imported": len(sys.modules),
        "files": sum(1 for _ in base.rglob("*")),
    }  # fmt: skip


def _threads() -> int:
    """Return how many threads there are, once those that are ending (a loader's, say) have ended."""
    counts: list[int] = []
    for _ in range(20):
        counts.append(len(list(Path("/proc/self/task").iterdir())) + threading.active_count())
        if counts[-1] <= 2:
            break
        time.sleep(0.05)
    return min(counts)


def _grown(held: list[dict[str, int]]) -> str:
    """Say what is more at the end than when all was warm; memory by the median of a stretch, for it breathes."""
    width = max(len(held) // 5, 1)
    warm, end = held[2 * width - 1 :][:width], held[-width:]
    cycles = end[0]["cycle"] - warm[0]["cycle"]
    memory = median(at["bytes"] for at in end) - median(at["bytes"] for at in warm)
    # In a short run memory that is only kept for the next use outweighs what leaks.
    if cycles > 100 and memory > _GROWTH_BYTES * cycles:
        return f"memory grows by {memory / cycles:.0f} bytes a cycle"
    for name in ("open files", "threads", "modules", "hooks", "imported", "files"):
        # One more may be born late, once; what leaks does so again and again.
        grown = min(at[name] for at in end) - max(at[name] for at in warm)
        if grown > max(1, 0.01 * cycles):
            return f"{name} grow: {[at[name] for at in held]}"
    return ""


CAMPAIGN = Campaign(
    "cycles",
    promise="Pruning, saving and loading in one process leaves no memory, open files, threads, hooks or temporary files behind.",
    tried="1,000 times load, prune, save over what is there, load again, in one process.",
    full=1,
    quick=1,
    weight=6,
    trial=_trial,
)
