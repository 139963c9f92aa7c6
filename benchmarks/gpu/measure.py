"""One case: the naive loop, ours, and `unique`, then ours compiled, in seconds, forwards, operations a second, and memory."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kernels import Profile, profile_ablation
from benchmarks.speed.cases import Case
from benchmarks.speed.clock import timed
from benchmarks.speed.compare import spread
from benchmarks.speed.methods import naive, one_forward, replay
from headprune.batch import Batch
from headprune.passes import RunContext
from headprune.placement import release_memory
from headprune.scoring.gradients import unique
from headprune.scoring.request import ScoreRequest

NAIVE = "naive"
ABLATION = "ablation"
UNIQUE = "unique"
COMPILED = "ablation --compile"
NO_TIME = "no time was left"
_NAIVE_HEADS = 6
TURNS = 3
# A run that takes longer is neither warmed up nor repeated.
_LONG_SECONDS = 4.0
# Of a loss in single precision, relative to the largest: more than rounding can do.
_DIFFERENCE = 1e-3


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
        difference: Largest difference of a loss, ours to naive, on the heads that naive ran, relative to the largest loss.
        flops: The fewest operations of ablation.
        profile: Which kernels ran, and how long none did.
        said: What ablation told about how it ran.
    """

    forward: float | None
    timings: dict[str, Timing]
    problems: dict[str, str]
    difference: float | None
    flops: float | None
    profile: Profile | None
    said: tuple[str, ...] = ()

    @classmethod
    def nothing(cls) -> "Measured":
        """Return what is known of a case before it is measured."""
        return cls(None, {}, {}, None, None, None)

    def without(self, way: str, why: str) -> "Measured":
        """Return the same, noting why a way is not there."""
        return replace(self, problems={**self.problems, way: why})


def measure(case: Case, flops: float, *, clock: Clock, turns: int) -> Measured:
    """Run the naive loop, ablation and `unique` as far as there is time, and profile; what fails doesn't stop the others."""
    columns = spread(case.num_heads, _NAIVE_HEADS)
    said: list[str] = []
    timings, found, problems = _attempt(
        case,
        {
            NAIVE: lambda: naive(case, columns),
            ABLATION: lambda: _ablation(case, said=said),
            UNIQUE: lambda: unique(
                ScoreRequest(case.model, case.anatomy, case.batches, case.task.loss)
            ),
        },
        clock=clock,
        turns=turns,
    )
    difference = None
    if NAIVE in found and ABLATION in found:
        rows = [0, *(column + 1 for column in columns)]
        difference = _difference(found[ABLATION][rows], found[NAIVE].losses)
        if difference is None or (case.model.dtype == torch.float32 and difference > _DIFFERENCE):
            problems["losses"] = f"they differ from those of the naive loop by {difference}"
    profile = None
    try:
        profile = profile_ablation(case) if clock.left > 0 else None
    except Exception as error:  # noqa: BLE001 - the numbers are there all the same
        problems["profile"] = in_a_line(error)
    forward = median(one_forward(case) for _ in range(turns))
    return Measured(forward, timings, problems, difference, flops, profile, tuple(set(said)))


def _difference(ours: Tensor, others: Tensor) -> float | None:
    """Return the largest difference relative to the largest loss; None where there is what isn't a number."""
    largest = float((ours - others).abs().max() / others.abs().max())
    return largest if isfinite(largest) else None


def with_compiled(known: Measured, case: Case, *, clock: Clock, turns: int) -> Measured:
    """Return what is known and how long compiled ablation takes, the compiling itself left out."""
    ways = {COMPILED: lambda: _ablation(case, compile=True)}
    timings, _found, problems = _attempt(case, ways, clock=clock, turns=turns)
    return replace(
        known, timings={**known.timings, **timings}, problems={**known.problems, **problems}
    )


def in_a_line(error: Exception) -> str:
    """Return what went wrong, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _ablation(case: Case, *, compile: bool = False, said: list[str] | None = None) -> Tensor:
    """Return the losses with all heads and without each, as `headprune score --method ablation` computes them."""
    heads = case.num_heads
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])

    def begin(batches: Sequence[Batch], _name: str) -> Sequence[Batch]:
        """Count memory from here on: how many masks fit was tried before."""
        _forget_peak(case.device)
        return batches

    told: list[str] = [] if said is None else said
    return replay(
        case,
        case.batches,
        masks,
        context=RunContext(track=begin, notify=told.append, compile=compile),
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _attempt(
    case: Case, ways: Mapping[str, Callable[[], Any]], *, clock: Clock, turns: int
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
            timings[name], found[name] = _timed(case, name, run, clock=clock, turns=turns)
        except Exception as error:  # noqa: BLE001 - the others are still to be measured
            problems[name] = in_a_line(error)
        gc.collect()
        release_memory()
    return timings, found, problems


def _timed(
    case: Case, name: str, run: Callable[[], Any], *, clock: Clock, turns: int
) -> tuple[Timing, Any]:
    """Warm up, then run some times; what takes long is run once, and counts as it is."""
    seconds, found = timed(case.device, run)
    repeats = 0 if seconds > _LONG_SECONDS or clock.left < turns * seconds else turns
    if name == COMPILED:  # the first run compiled, and is no measure
        repeats = repeats or 1
    samples: list[float] = []
    _forget_peak(case.device)
    for _ in range(repeats):
        seconds, found = timed(case.device, run)
        samples.append(found.seconds if name == NAIVE else seconds)
    if not samples:  # of the naive loop, what all heads would take
        samples = [found.seconds if name == NAIVE else seconds]
    on_gpu = case.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(case.device) if on_gpu else None
    return Timing(tuple(samples), peak), found
