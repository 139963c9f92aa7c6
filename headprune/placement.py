"""Devices, data types, memory; and where weights lie: on one device, over several, or waiting in CPU memory (accelerate).

A weight that waits elsewhere is a parameter on the meta device: it has a shape and no numbers, and of tied weights each is a
parameter of its own. What counts or reads parameters does so through here, as does the hash that tells models apart.
"""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from headprune.errors import ConfigError, ModelError, UnsupportedError, first_line
from headprune.untrusted.weights import weight_files


def input_device(model: nn.Module) -> torch.device:
    """Return where a model wants its inputs: where its first part runs, if it is spread over several devices."""
    for module in model.modules():  # accelerate notes where a part runs, wherever its weights wait
        runs_on = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if runs_on is not None:
            return torch.device(runs_on)
    return next(model.parameters()).device


def describe(model: PreTrainedModel) -> str:
    """Return where a model is, in words: ``cuda:0``, or ``cuda:0, cuda:1 and cpu`` where it is spread."""
    placed = getattr(model, "hf_device_map", None) or {"": input_device(model)}
    names = [f"cuda:{where}" if isinstance(where, int) else str(where) for where in placed.values()]
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; to a CUDA device it goes through pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()  # rows that share memory can't be pinned
    return tensor.to(device, non_blocking=True)


def parameters_once(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name, tied ones once, also where they wait elsewhere and are an object each."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, nn.Parameter] = {}
    seen: set[str] = set()
    for name, parameter in model.named_parameters():
        source = tied.get(name, name) if parameter.is_meta else name
        if source not in seen:
            seen.add(source)
            found[name] = parameter
    return found


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model's parameters have, tied ones counted once."""
    return sum(parameter.numel() for parameter in parameters_once(model).values())


def values_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters with their numbers, sorted by name, one at a time: those that wait elsewhere are read from there."""
    for name in sorted(parameters_once(model)):
        path, _, leaf = name.rpartition(".")
        yield name, value_of(model.get_submodule(path), leaf)


def value_of(module: nn.Module, name: str) -> Tensor:
    """Return a parameter of a module with its numbers: where it waits elsewhere, a copy in CPU memory."""
    from accelerate.utils import align_module_device

    parameter: Tensor = getattr(module, name)
    if not parameter.is_meta:
        return parameter.detach()
    with align_module_device(module, torch.device("cpu")):
        return module.get_parameter(name).detach()


def not_finite(what: str, model: PreTrainedModel, *, where: str) -> ModelError:
    """Return what to raise where numbers that a model made aren't finite: the weights are to blame where one isn't, either."""
    numbers = ((name, value) for name, value in values_of(model) if value.is_floating_point())
    name = next((name for name, value in numbers if not bool(value.isfinite().all())), None)
    if name is not None:
        return ModelError(
            f"{what}: the weight {name} holds a nan or an infinity",
            where="the model's weights",
            hint="fetch the model again, or train it again with a smaller learning rate",
        )
    return ModelError(
        f"{what}: something overflowed, or is not a number",
        where=where,
        hint="look for empty or damaged rows; with `dtype` float16, try bfloat16 or float32",
    )


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights wait elsewhere until their layer runs."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    return any(
        getattr(hook, "offload", False)
        for outer in hooks
        for hook in getattr(outer, "hooks", (outer,))
    )


def saving_aside(model: nn.Module) -> AbstractContextManager[None]:
    """Let a forward keep what its backward needs in CPU memory, where weights wait for their turn there.

    A graph holds every weight that it multiplied by. Kept on the device, all weights would lie there at once. What comes back
    lies in memory as it did, as kernels choose by that: ``torch.autograd.graph.save_on_cpu`` packs a padded attention mask, and
    the kernel that made the padding refuses it then.
    """

    def aside(tensor: Tensor) -> tuple[torch.device, Tensor]:
        return tensor.device, _copy_as_it_lies(tensor, torch.device("cpu"))

    def back(saved: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = saved
        return _copy_as_it_lies(tensor, device)

    return saved_tensors_hooks(aside, back) if is_offloaded(model) else nullcontext()


def _copy_as_it_lies(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy with the strides of ``tensor``: what is repeated is copied once, and windows that overlap lie apart."""
    once = tensor.detach()[tuple(slice(None if stride else 1) for stride in tensor.stride())]
    reach, overlaps = 0, False
    for stride, size in sorted(zip(once.stride(), once.shape, strict=True)):
        overlaps |= size > 1 and stride <= reach
        reach += stride * (size - 1)
    if overlaps:
        return tensor.detach().to(device, copy=True)
    empty = torch.empty_strided(once.shape, once.stride(), dtype=tensor.dtype, device=device)
    return empty.copy_(once).expand(tensor.shape)


def refuse_offloaded(model: PreTrainedModel) -> None:
    """Refuse to cut weights that aren't there.

    Raises:
        UnsupportedError: Some of the model's weights wait in CPU memory or on disk.
    """
    if is_offloaded(model):
        raise UnsupportedError(
            "the model is spread, and weights that wait in CPU memory or on disk can't be cut",
            where=f"{type(model).__name__} on {describe(model)}",
            hint="score it spread (`device`: spread), then prune it from file to file with these scores (`scores`, `stream`)",
        )


@contextmanager
def moved_away(model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's weights in CPU memory for the length of a block, so that another process finds their room free.

    Parameters and buffers stay the objects that they are. On the CPU, and for weights that wait there anyway, nothing is moved.
    """
    tensors = [*model.parameters(), *model.buffers()]
    moved = [
        (tensor, tensor.device) for tensor in tensors if tensor.device.type not in ("cpu", "meta")
    ]
    try:
        for tensor, _device in moved:
            tensor.data = tensor.data.cpu()
        release_memory()
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


def release_memory() -> None:
    """Give freed GPU memory back, so that larger tensors, and other processes, find room in one piece."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
