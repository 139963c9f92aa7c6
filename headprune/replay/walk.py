"""Go through a model block by block, as fitting layer after layer does: what lies before has run, and isn't run again.

How far a batch has come is the calls that are over, the outermost ones. From there on, a module's input costs what lies between;
so a walk through a whole model costs one forward, whatever is read on the way.
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
from headprune.replay.recording import Call, Tape, block_of, outermost, read_by, returning
from headprune.replay.rows import map_tensors

Come = tuple[Call, ...]
"""How far a batch has come: the outermost calls that are over; () is the beginning."""


def in_order(model: PreTrainedModel, anatomy: Anatomy, batch: Batch) -> list[Site]:
    """Return the attentions in the order in which they run; left out are those that don't run just once."""
    tape = Tape(model, anatomy)
    with tape.recording():
        forward(model, batch.inputs)
    calls = tape.sites()
    ran = [site for site in anatomy.sites if site.id in calls]
    return sorted(ran, key=lambda site: calls[site.id].projection.began)


def read_from(model: PreTrainedModel, batch: Batch, module: nn.Module, *, come: Come) -> Tensor:
    """Return what ``module`` reads, hooks included; what is over isn't run."""
    with returning(come):
        return read_by(module, lambda: forward(model, batch.inputs))


def go_on(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch, *, come: Come, through: nn.Module
) -> Come:
    """Run the model until ``through`` is over, and return how far the batch has come."""
    tape = Tape(model, anatomy)
    with tape.recording(), returning(come), _stopped_after(through):
        forward(model, batch.inputs)
    return outermost(tape.calls)


def stage_of(model: PreTrainedModel, site: Site) -> nn.Module:
    """Return what a walk goes through at a time: the block of an attention, or the attention where it lies in none."""
    return block_of(model, site) or model.get_submodule(site.path)


def without_values(come: Come, blocks: nn.ModuleList) -> Come:
    """Return the same with nothing in the outputs of ``blocks`` but those of the last: most models read no others.

    The tensors keep their shapes and take no memory.
    """
    inside = [place for place, call in enumerate(come) if call.module in set(blocks)]
    calls = list(come)
    for place in inside[:-1]:
        calls[place] = replace(
            calls[place], output=map_tensors(calls[place].output, _empty), read=None
        )
    return tuple(calls)


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


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
    come: Come,
    blocks: nn.ModuleList,
) -> bool:
    """Whether ``module`` reads the same, bit by bit, when of all ``blocks`` only the last one's output is there."""
    wanted = read_from(model, batch, module, come=come)
    found = read_from(model, batch, module, come=without_values(come, blocks))
    return torch.equal(wanted, found)


class _OverError(Exception):
    """A module is over, and nothing after it needs to run."""


@contextmanager
def _stopped_after(module: nn.Module) -> Iterator[None]:
    """End the block where ``module`` is over."""

    def stop(*_args: Any) -> None:
        raise _OverError

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _OverError:
        pass
    finally:
        handle.remove()
