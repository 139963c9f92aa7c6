"""Where the time of one batch goes, by operator."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.cases import Case
from benchmarks.speed.clock import wait
from benchmarks.speed.methods import replay, whole
from headprune.batch import Batch
from headprune.passes import RunContext

_SHOWN = 12


@dataclass(frozen=True)
class Operator:
    """An operator, how often it ran, and its own share of the time."""

    name: str
    calls: int
    seconds: float
    share: float


def profile_batch(case: Case) -> list[Operator]:
    """Return the operators that take most of the time of ours on the first batch, all heads."""
    heads = case.num_heads
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    on_gpu = case.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler = profile(activities=activities)

    def begin(batches: Sequence[Batch], _name: str) -> Sequence[Batch]:
        """Start when the batch begins: what was before is done once a run."""
        profiler.start()
        return batches

    replay(case, [whole(case.batches[0])], masks, context=RunContext(track=begin))
    wait(case.device)
    profiler.stop()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = profiler.key_averages()
    total = sum(getattr(event, attribute) for event in events) or 1
    most = sorted(events, key=lambda event: getattr(event, attribute), reverse=True)[:_SHOWN]
    return [
        Operator(
            event.key,
            event.count,
            getattr(event, attribute) / 1e6,
            getattr(event, attribute) / total,
        )
        for event in most
    ]
