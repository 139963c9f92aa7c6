"""Where a model's weights lie: on one device, over several, or waiting in CPU memory until their layer runs (accelerate).

A weight that waits elsewhere is a parameter on the meta device: it has a shape and no numbers, and of tied weights each is a
parameter of its own. What counts or reads parameters does so through here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel

from headprune.errors import ModelError, UnsupportedError


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
    from accelerate.utils import align_module_device

    for name, parameter in sorted(parameters_once(model).items()):
        if not parameter.is_meta:
            yield name, parameter.detach()
            continue
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        with align_module_device(module, torch.device("cpu")):
            yield name, module.get_parameter(leaf).detach()


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

    A graph holds every weight that it multiplied by. Kept on the device, all weights would lie there at once.
    """
    return save_on_cpu() if is_offloaded(model) else nullcontext()


def refuse_offloaded(model: PreTrainedModel, *, to: str) -> None:
    """Refuse to change weights that aren't there.

    Args:
        model: The model.
        to: What was to be done: ``be cut``.

    Raises:
        UnsupportedError: Some of the model's weights wait in CPU memory or on disk.
    """
    if is_offloaded(model):
        raise UnsupportedError(
            f"the model is spread, and weights that wait in CPU memory or on disk can't {to}",
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
