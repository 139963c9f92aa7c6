"""What the numbers were measured on."""

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from headprune.placement import versions


def describe(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions, the date, and how busy the machine is."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "matrix_precision": torch.get_float32_matmul_precision(),
        "versions": versions(),
        "load": load(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def load() -> float | None:
    """Return how many processes wanted a core over the last minute; None where nobody says."""
    with suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return None


def _cpu() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
