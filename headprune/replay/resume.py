"""Run several masks in one forward, from the attention on in which they first silence a head.

Everything that had ended before that attention began returns its recording: blocks, embeddings, whole encoders. The model's own
forward does the rest, on all masks stacked on the batch axis.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward
from headprune.masking import gated
from headprune.placement import staged
from headprune.replay.logits import example_losses
from headprune.replay.record import Recording, Tape, block_of, repeat, replaced, returning

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
    """Run a batch once, and keep what later forwards needn't compute again.

    Args:
        model: The model.
        anatomy: Its anatomy.
        batch: The rows, on the model's device.
        loss: One loss per example.
        compiled: Compiled forwards of blocks.
    """
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
