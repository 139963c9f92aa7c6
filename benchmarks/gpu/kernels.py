"""Which kernels take the time of ablation, and how long the device has none to run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.cases import Case
from benchmarks.speed.clock import wait
from benchmarks.speed.methods import replay, whole
from headprune.batch import Batch
from headprune.passes import RunContext

_HEADS = 48
_SHOWN = 10


@dataclass(frozen=True)
class Profile:
    """What a profiler saw of ablation on one batch.

    Args:
        kernels: ``(name, calls, share of the time)`` of the ten that take most time; on the CPU, of operators.
        idle: Share of the time between the first kernel and the last in which none ran; None on the CPU.
    """

    kernels: tuple[tuple[str, int, float], ...]
    idle: float | None


def profile_ablation(case: Case) -> Profile:
    """Profile the ablation of some heads on the first batch.

    Raises:
        RuntimeError: The profiler saw no kernel.
    """
    heads = case.num_heads
    masks = 1 - torch.eye(heads)[:: max(1, heads // _HEADS)]
    batch = whole(case.batches[0])
    on_gpu = case.device.type == "cuda"
    seen = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])

    def begin(batches: Sequence[Batch], _name: str) -> Sequence[Batch]:
        """Start where the batch does: what is done once a run (trials of modes and sizes) is none of it."""
        wait(case.device)
        seen.start()
        return batches

    replay(case, [batch], masks)
    replay(case, [batch], masks, context=RunContext(track=begin))
    wait(case.device)
    seen.stop()
    if not on_gpu:
        operators = seen.key_averages()
        total = sum(event.self_cpu_time_total for event in operators) or 1
        most = sorted(operators, key=lambda event: -event.self_cpu_time_total)[:_SHOWN]
        found = tuple((one.key, one.count, one.self_cpu_time_total / total) for one in most)
        return Profile(found, None)
    ran = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
    if not ran:
        raise RuntimeError("the profiler saw no kernel: it may not read them on this machine")
    spans = [(event.time_range.start, event.time_range.end) for event in ran]
    calls: Counter[str] = Counter(event.name for event in ran)
    times: Counter[str] = Counter()
    for event in ran:
        times[event.name] += event.time_range.end - event.time_range.start
    total = sum(times.values()) or 1
    return Profile(
        tuple((name, calls[name], taken / total) for name, taken in times.most_common(_SHOWN)),
        idle_share(spans),
    )


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """Return the share of the time between the first start and the last end that no span covers.

    >>> idle_share([(0, 2), (1, 3), (9, 10)])
    0.6
    >>> idle_share([])
    0.0
    """
    ordered = sorted(spans)
    if not ordered:
        return 0.0
    first, reached = ordered[0][0], ordered[0][0]
    busy = 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - first) if reached > first else 0.0
