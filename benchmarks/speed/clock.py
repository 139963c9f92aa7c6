"""Time on any device."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(device: torch.device, run: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that ``run`` takes, and what it returns; on a CUDA device by its own clock, between two events."""
    wait(device)
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000, result
    start = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - start, result
