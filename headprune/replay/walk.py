"""Go through a model block by block, as fitting layer after layer does: what lies before has run, and isn't run again.

How far a batch is done is told by its completed calls, the outermost ones. From there on, a module's input costs what lies
between; so a walk through a whole model costs one forward, whatever is read on the way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.replay.record import (
    Call,
    Tape,
    block_of,
    map_tensors,
    outermost,
    read_by,
    returning,
)

CompletedCalls = tuple[Call, ...]
"""How far a batch is done: the outermost calls that have ended; () is the beginning."""


def in_order(model: PreTrainedModel, anatomy: Anatomy, batch: Batch) -> list[Site]:
    """Return the attentions in the order in which they run; left out are those that don't run just once."""
    tape = Tape(model, anatomy)
    with tape.recording():
        forward(model, batch.inputs)
    calls = tape.sites()
    ran = [site for site in anatomy.sites if site.id in calls]
    return sorted(ran, key=lambda site: calls[site.id].projection.began)


def read_from(
    model: PreTrainedModel, batch: Batch, module: nn.Module, *, completed: CompletedCalls
) -> Tensor:
    """Return what ``module`` reads, hooks included; what is completed isn't run."""
    with returning(completed):
        return read_by(module, lambda: forward(model, batch.inputs))


def advance_through(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    *,
    completed: CompletedCalls,
    through: nn.Module,
) -> CompletedCalls:
    """Run the model until ``through`` has ended, and return the calls that are completed then."""
    tape = Tape(model, anatomy)
    with tape.recording(), returning(completed), _stopped_after(through):
        forward(model, batch.inputs)
    return outermost(tape.calls)


def block_or_attention(model: PreTrainedModel, site: Site) -> nn.Module:
    """Return what a walk goes through at a time: the block of an attention, or the attention where it lies in none."""
    return block_of(model, site) or model.get_submodule(site.path)


def without_values(completed: CompletedCalls, blocks: nn.ModuleList) -> CompletedCalls:
    """Return the same with nothing in the outputs of ``blocks`` but those of the last: most models read no others.

    The tensors keep their shapes and take no memory.
    """

    def empty(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(()).expand(tensor.shape)

    members = set(blocks)
    inside = [index for index, call in enumerate(completed) if call.module in members]
    calls = list(completed)
    for index in inside[:-1]:
        calls[index] = replace(
            calls[index], output=map_tensors(calls[index].output, empty), read=None
        )
    return tuple(calls)


def list_of(model: PreTrainedModel, block: nn.Module) -> nn.ModuleList | None:
    """Return the list that a block is an element of."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((blocks for blocks in lists if block in set(blocks)), None)


@torch.no_grad()
def reads_last_only(
    model: PreTrainedModel,
    batch: Batch,
    module: nn.Module,
    *,
    completed: CompletedCalls,
    blocks: nn.ModuleList,
) -> bool:
    """Whether ``module`` reads the same, bit by bit, when of all ``blocks`` only the last one's output is there."""
    last_only = without_values(completed, blocks)
    return torch.equal(
        read_from(model, batch, module, completed=completed),
        read_from(model, batch, module, completed=last_only),
    )


class _StopForwardError(Exception):
    """A module has ended, and nothing after it needs to run."""


@contextmanager
def _stopped_after(module: nn.Module) -> Iterator[None]:
    """End the block where ``module`` has ended."""

    def stop(*_args: Any) -> None:
        raise _StopForwardError

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _StopForwardError:
        pass
    finally:
        handle.remove()
