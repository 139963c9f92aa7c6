"""What a training takes of memory beside activations: said before it starts, and refused where it can't fit."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from headprune.distillation.settings import linear_layers
from headprune.errors import MemoryLimitError
from headprune.placement import available_memory, count_parameters, input_device
from headprune.runtime.launcher import launched_size, variable

_OF_A_PARAMETER = 12
"""Bytes of its gradient and of AdamW's two states, in single precision."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training needs beside the weights that are there.

    Args:
        single: For weights of half precision that are trained in single.
        teacher: For what of the teacher isn't in memory yet.
        training: For gradients and the optimizer's states.
        start: For the weights to go back to, in CPU memory.
    """

    single: int
    teacher: int
    training: int
    start: int

    @property
    def described(self) -> str:
        """What it is for, in words."""
        parts = {
            "the weights in single precision": self.single,
            "the teacher": self.teacher,
            "gradients and optimizer": self.training,
            "the weights to go back to": self.start,
        }
        sizes = [f"{name} {_shown(size)}" for name, size in parts.items() if size]
        return f"memory for healing, beside activations: {', '.join(sizes)}"


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def memory_for(
    model: PreTrainedModel,
    *,
    lora: int | None,
    trained: Collection[str] | None,
    copied: Collection[str] | None,
) -> Memory:
    """Return what training a model takes.

    Args:
        model: The model.
        lora: Rank of adapters; None trains the weights themselves.
        trained: Names of the parameters that are trained, or get adapters; None stands for all.
        copied: Names of the parameters that the teacher gets a copy of; None stands for all.
    """
    named = dict(model.named_parameters())
    bytes_of = {name: parameter.nbytes for name, parameter in named.items()}
    numbers = sum(named[name].numel() for name in (named if trained is None else trained))
    single = sum(4 * parameter.numel() for parameter in named.values() if parameter.itemsize == 2)
    start = sum(bytes_of[name] for name in (named if trained is None else trained))
    if lora is not None:
        layers = linear_layers(model, within=trained).values()
        numbers, single = sum(lora * sum(layer.weight.shape) for layer in layers), 0
        start = sum(layer.weight.nbytes for layer in layers)
    teacher = sum(bytes_of[name] for name in (named if copied is None else copied))
    # Of several processes, each puts gradients together in a copy.
    each = _OF_A_PARAMETER + 4 * (launched_size() > 1)
    return Memory(single, teacher, each * numbers, start)


def refuse_too_large(memory: Memory, model: PreTrainedModel, *, smaller: str) -> None:
    """Refuse a training for which too little memory is free.

    Raises:
        MemoryLimitError: ``smaller`` says what takes less.
    """
    device = input_device(model)
    needed = memory.single + memory.teacher + memory.training
    free = available_memory()
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    elif device.type == "cpu":
        needed = (needed + memory.start) * variable("LOCAL_WORLD_SIZE", default=1, least=1)
    else:
        return
    if free is not None and needed > free:
        raise MemoryLimitError(
            f"healing needs {_shown(needed)} beside activations, and {_shown(free)} are free "
            f"({count_parameters(model) / 1e6:.0f} M parameters)",
            where=f"heal, on {device}",
            hint=smaller,
        )
