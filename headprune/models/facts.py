"""Devices, data types and memory of this machine; and what tells models apart."""

import hashlib
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.errors import (
    ConfigError,
    first_line,
)
from headprune.placement import values_of
from headprune.untrusted.weights import weight_files

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device a name stands for; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"the device {name!r} can't be used: {first_line(error)}",
            where="`device`",
            hint="use auto, cpu, cuda, cuda:0, mps, or spread (over all GPUs)",
        ) from error
    return device


def choose_dtype(name: str) -> torch.dtype | str:
    """Return the dtype a name stands for; ``auto`` is the checkpoint's own."""
    return _DTYPES.get(name, "auto")


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the model's parameters: names, shapes, dtypes and a spread of values of each."""
    return fingerprint_of((name, value, value.dtype) for name, value in values_of(model))


def fingerprint_of(parameters: Iterable[tuple[str, Tensor, torch.dtype]]) -> str:
    """Return the fingerprint of parameters given one by one, sorted by name, each with the dtype that it is compared in."""
    digest = hashlib.sha256()
    for name, parameter, dtype in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}{dtype}".encode())
        flat = parameter.detach().flatten()
        if flat.numel():
            # Places spread by a multiplicative hash: an even stride would fall into one column of a matrix.
            indices = torch.arange(min(4096, flat.numel())) * 2_654_435_761 % flat.numel()
            values = flat[indices.to(flat.device)].to(dtype)
            digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_bytes(directory: Path) -> int:
    """Return the size of the weights in a directory."""
    return sum(path.stat().st_size for path in weight_files(directory))


def available_memory() -> int | None:
    """Return how many bytes a process can still allocate on this machine or in its container; None where that isn't known."""
    limits: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, StopIteration):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        # Pages of files count as used, and are given back when somebody needs them.
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("inactive_file "))
        limits.append(limit - used + int(line.split()[1]))
    return min(limits, default=None)


def versions() -> dict[str, str]:
    """Return the versions of what computed a number."""
    names = ("headprune", "torch", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
