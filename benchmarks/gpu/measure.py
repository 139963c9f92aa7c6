"""One case: the naive loop, ours, and `unique`, then ours compiled, in seconds, forwards, operations a second, and memory."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kernels import Profile, profile_ablation
from benchmarks.speed.cases import Case
from benchmarks.speed.clock import timed, wait
from benchmarks.speed.compare import spread
from benchmarks.speed.methods import naive, one_forward, replay
from headprune.passes import Pass
from headprune.placement import release_memory
from headprune.scoring import METHODS

COMPILED = "ablation --compile"
NO_TIME = "no time was left"
_NAIVE_HEADS = 6
_TURNS = 3


@dataclass
class Clock:
    """How much time there is.

    Args:
        seconds: For everything.
        began: When it started.
    """

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)


@dataclass(frozen=True)
class Timing:
    """What a way of scoring took.

    Args:
        samples: Seconds of all heads and rows, every time it was run.
        peak_bytes: Memory that was allocated on the device at most; None on the CPU.
    """

    samples: tuple[float, ...]
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.samples)


@dataclass(frozen=True)
class Measured:
    """What was found for a case in a data type.

    Args:
        forward: Seconds of one forward of all rows.
        timings: By the name of the way; a way that failed, or for which no time was left, is not there.
        problems: By the name of the way, what went wrong, or that no time was left.
        difference: Largest difference of a loss, ours to naive, on the heads that naive ran.
        flops: The fewest operations of ablation.
        profile: Which kernels ran, and how long none did.
    """

    forward: float
    timings: dict[str, Timing]
    problems: dict[str, str]
    difference: float | None
    flops: float
    profile: Profile | None


def measure(case: Case, flops: float, *, clock: Clock) -> Measured:
    """Run the naive loop, ablation and `unique` as far as there is time, and profile; what fails doesn't stop the others."""
    columns = spread(case.num_heads, _NAIVE_HEADS)
    given: dict[str, Any] = {
        "batches": case.batches,
        "loss": case.task.loss,
        "seed": 0,
        "over": Pass(),
    }
    timings, found, problems = _attempt(
        case,
        {
            "naive": lambda: naive(case, columns),
            "ablation": lambda: _ablation(case, Pass()),
            "unique": lambda: METHODS["unique"](case.model, case.anatomy, **given),
        },
        clock=clock,
    )
    difference = None
    if "naive" in found and "ablation" in found:
        rows = [0, *(column + 1 for column in columns)]
        difference = float((found["ablation"][rows] - found["naive"].losses).abs().max())
    profile = None
    try:
        profile = profile_ablation(case) if clock.left > 0 else None
    except Exception as error:  # noqa: BLE001 - the numbers are there all the same
        problems["profile"] = in_a_line(error)
    forward = median(one_forward(case) for _ in range(_TURNS))
    return Measured(forward, timings, problems, difference, flops, profile)


def with_compiled(known: Measured, case: Case, *, clock: Clock) -> Measured:
    """Return what is known and how long compiled ablation takes, the compiling itself left out."""
    ways = {COMPILED: lambda: _ablation(case, Pass(compile=True))}
    timings, _found, problems = _attempt(case, ways, clock=clock)
    return replace(
        known, timings={**known.timings, **timings}, problems={**known.problems, **problems}
    )


def in_a_line(error: Exception) -> str:
    """Return what went wrong, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _ablation(case: Case, over: Pass) -> Tensor:
    """Return the losses with all heads and without each, as `headprune score --method ablation` computes them."""
    heads = case.num_heads
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    return replay(case, case.batches, masks, over=over)


def _attempt(
    case: Case, ways: Mapping[str, Callable[[], Any]], *, clock: Clock
) -> tuple[dict[str, Timing], dict[str, Any], dict[str, str]]:
    """Return timings, results and problems of all ways."""
    timings: dict[str, Timing] = {}
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, run in ways.items():
        if clock.left <= 0:
            problems[name] = NO_TIME
            continue
        try:
            timings[name], found[name] = _timed(case, name, run, clock=clock)
        except Exception as error:  # noqa: BLE001 - the others are still to be measured
            problems[name] = in_a_line(error)
        gc.collect()
        release_memory()
    return timings, found, problems


def _timed(case: Case, name: str, run: Callable[[], Any], *, clock: Clock) -> tuple[Timing, Any]:
    """Warm up once, then run up to three times, fewer where the time wouldn't last."""
    on_gpu = case.device.type == "cuda"
    begin = time.monotonic()
    found = run()
    wait(case.device)
    taken = time.monotonic() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(case.device)
    samples: list[float] = []
    while len(samples) < _TURNS and (not samples or clock.left > 2 * taken):
        seconds, found = timed(case.device, run)
        # The naive loop ran some heads, and tells what all would take.
        samples.append(found.seconds if name == "naive" else seconds)
    peak = torch.cuda.max_memory_allocated(case.device) if on_gpu else None
    return Timing(tuple(samples), peak), found
