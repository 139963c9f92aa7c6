"""Run several masks in one forward, from the attention on in which they first silence a head.

Everything that had ended before that attention began returns its recording: blocks, embeddings, whole encoders. The model's own
forward does the rest, on all masks stacked on the batch axis. Fitting layer after layer goes on from block to block the same way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, Loss, forward
from headprune.masking import gated
from headprune.placement import staged
from headprune.replay.logits import example_losses
from headprune.replay.record import (
    Call,
    Recording,
    Tape,
    block_of,
    map_tensors,
    outermost,
    repeat,
    replaced,
    returning,
    tensors_in,
)

Mode = Literal["block", "stacked", "plain"]
"""How masks are run that start in a certain attention, from the cheapest to the one that is always right.

``block``: nothing before that attention is run again; ``stacked``: everything runs, many masks in one forward; ``plain``: one
mask per forward.
"""

CompiledBlocks = Mapping[nn.Module, Callable[..., Any]]
"""Compiled forwards of blocks."""


@dataclass(frozen=True, eq=False)
class ReplayState:
    """What running masks takes besides the masks.

    Args:
        model: The model.
        anatomy: Its anatomy; columns of masks are its heads.
        batch: The rows, on the model's device.
        loss: One loss per example.
        recording: What the batch's forward with all heads put out.
        compiled: Compiled forwards of blocks, for those in which nothing is changed.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    batch: Batch
    loss: Loss
    recording: Recording
    compiled: CompiledBlocks = field(default_factory=dict)


def record(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    compiled: CompiledBlocks | None = None,
) -> ReplayState:
    """Run a batch once, and keep what later forwards needn't compute again."""
    tape = Tape(model, anatomy)
    with tape.recording():
        losses = example_losses(
            model,
            batch,
            loss,
            run=lambda: forward(model, batch.inputs),
            rerun=lambda: tape.rerun(batch),
        )
    recording = Recording(tuple(tape.calls), tape.sites(), losses[0])
    return ReplayState(model, anatomy, batch, loss, recording, compiled or {})


def compiled_blocks(model: PreTrainedModel, anatomy: Anatomy) -> CompiledBlocks:
    """Return compiled forwards of the blocks that attentions lie in; one graph serves batches of any size and length."""
    blocks = dict.fromkeys(block_of(model, site) for site in anatomy.sites)
    return {
        block: torch.compile(block.forward, dynamic=True) for block in blocks if block is not None
    }


def run_masks(
    state: ReplayState, masks: Float[Tensor, "masks heads"], *, site: Site, mode: Mode
) -> Float[Tensor, "masks examples"]:
    """Return the losses under masks that silence heads of ``site`` and of later attentions only.

    Args:
        state: The model, the batch and its recording.
        masks: On the CPU, whatever the model's device: what they change is looked up without waiting for the device.
        site: The first attention in which any of them silences a head, in the order in which they ran.
        mode: How to run them.
    """
    if mode == "plain":
        return torch.cat([_run(state, mask[None], site=site, mode="stacked") for mask in masks])
    return _run(state, masks, site=site, mode=mode)


def _run(state: ReplayState, masks: Tensor, *, site: Site, mode: Mode) -> Tensor:
    batch, calls = state.batch, state.recording.sites
    copies, rows = masks.shape[0], batch.num_rows
    began = None if mode == "stacked" else calls[site.id].attention.began
    changed = _changed(state, masks, began=began)
    with ExitStack() as stack:
        if state.compiled:
            stack.enter_context(replaced(_untouched(state, changed)))
        if began is not None:
            done = state.recording.done(before=began)
            stack.enter_context(returning(done, copies=copies, rows=rows))
        if changed.sites:
            columns = [
                column
                for one in changed.sites
                for column in range(len(state.anatomy.heads))[state.anatomy.columns[one.id]]
            ]
            gates = staged(masks[:, columns], batch.example_of_row.device)
            by_row = gates.repeat_interleave(rows, dim=0) if copies > 1 else gates[0]
            stack.enter_context(gated(state.model, changed, gates=by_row))
        inputs = repeat(dict(batch.inputs), copies=copies, rows=rows)
        return example_losses(
            state.model,
            batch,
            state.loss,
            run=lambda: forward(state.model, inputs),
            rerun=lambda: _after_blocks(state),
            copies=copies,
        )


def _changed(state: ReplayState, masks: Tensor, *, began: int | None) -> Anatomy:
    """Return the anatomy of those attentions that run under gates other than one: those that ended before are recordings."""
    all_kept = (masks == 1).all(dim=0)
    anatomy, calls = state.anatomy, state.recording.sites

    def is_recorded(site: Site) -> bool:
        return began is not None and site.id in calls and calls[site.id].attention.ended < began

    sites = tuple(
        site
        for site in anatomy.sites
        if not is_recorded(site) and not bool(all_kept[anatomy.columns[site.id]].all())
    )
    return Anatomy(anatomy.model_type, sites, anatomy.refused)


def _untouched(state: ReplayState, changed: Anatomy) -> CompiledBlocks:
    """Return the compiled forwards of those blocks in which no hook is."""
    attentions = {state.model.get_submodule(site.path) for site in changed.sites}
    return {
        block: function
        for block, function in state.compiled.items()
        if attentions.isdisjoint(block.modules())
    }


def _after_blocks(state: ReplayState) -> Any:
    with returning(state.recording.done()):
        return forward(state.model, state.batch.inputs)


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


@torch.no_grad()
def read_last_only(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch, *, order: Sequence[Site]
) -> dict[nn.Module, nn.ModuleList]:
    """Return the blocks that lie in a list of which each reads, of all others, what the one before it put out; and that list.

    It is asked on a few rows: such a block puts out the same, bit by bit, when nothing else is there.
    """
    blocks = list(dict.fromkeys(block_or_attention(model, site) for site in order))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {block: one for one in reversed(lists) for block in blocks if block in set(one)}
    run = partial(advance_through, model, anatomy, batch)
    calls = run(completed=(), through=blocks[0]) if blocks else ()
    kept = set[nn.ModuleList]()
    for block, after in pairwise(blocks):
        further = run(completed=calls, through=after)
        if block in inside:
            same = run(completed=without_values(calls, inside[block]), through=after)[-1]
            pairs = zip(tensors_in(further[-1].output), tensors_in(same.output), strict=True)
            if not all(torch.equal(one, other) for one, other in pairs):
                kept.add(inside[block])
        calls = further
    return {block: one for block, one in inside.items() if one not in kept}


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
