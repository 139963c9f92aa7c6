"""Run several masks in one forward, from the attention on in which they first differ from what was recorded.

Everything that had ended before that attention's output projection began returns its recording: blocks, embeddings, whole
encoders, and the attention itself, for a head can't change the other heads of its layer (see
:mod:`~headprune.replay.projection`). The model's own forward does the rest, on all masks stacked on the batch axis.
"""

from collections.abc import Callable, Mapping, Sequence
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
from headprune.replay.narrow import Tail, narrowed
from headprune.replay.projection import shared_forwards
from headprune.replay.recording import Recording, replaced, returning
from headprune.replay.rows import repeat

Mode = Literal["shared", "block", "stacked", "plain"]
"""How masks are run that first differ in a certain attention, from the cheapest to the one that is always right.

``shared``: that attention is not run again; ``block``: it is, but nothing before it; ``stacked``: everything runs, many masks
in one forward; ``plain``: one mask per forward.
"""


@dataclass(frozen=True, eq=False)
class Resumption:
    """What running masks takes besides the masks.

    Args:
        model: The model.
        anatomy: Its anatomy; columns of masks are its heads.
        batch: The rows, on the model's device.
        loss: What is wanted.
        base: The gates under which the batch was recorded.
        recording: What was recorded.
        tail: What of the last block needn't run in full.
        compiled: Compiled forwards of blocks, for those in which nothing is changed.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    batch: Batch
    loss: Loss
    base: Float[Tensor, " heads"]
    recording: Recording
    tail: Tail | None = None
    compiled: Mapping[nn.Module, Callable[..., Any]] = field(default_factory=dict)


def run_masks(
    given: Resumption, masks: Float[Tensor, "masks heads"], *, site: Site, mode: Mode
) -> Float[Tensor, "masks examples"]:
    """Return the losses under masks that differ from the base in ``site`` and later attentions only.

    Args:
        given: The model, the batch and its recording.
        masks: On the CPU, whatever the model's device: what they change is looked up without waiting for the device.
        site: The first attention in which any of them differs, in the order in which they ran.
        mode: How to run them.
    """
    if mode == "plain":
        return torch.cat([_run(given, mask[None], site=site, mode="stacked") for mask in masks])
    return _run(given, masks, site=site, mode=mode)


def _run(given: Resumption, masks: Tensor, *, site: Site, mode: Mode) -> Tensor:
    batch = given.batch
    copies, rows = masks.shape[0], batch.num_rows
    inputs = repeat(dict(batch.inputs), copies=copies, rows=rows)
    running = _still_gated(given, masks, site=site, mode=mode)
    with ExitStack() as stack:
        if given.compiled:
            stack.enter_context(replaced(_untouched(given, [*running.sites, site])))
        if mode != "stacked":
            _resume(stack, given, masks, site=site, mode=mode)
        if running.sites:
            columns = [column for s in running.sites for column in _columns(given.anatomy, s)]
            gates = staged(masks[:, columns], batch.example_of_row.device)
            by_row = gates.repeat_interleave(rows, dim=0) if copies > 1 else gates[0]
            stack.enter_context(gated(given.model, running, gates=by_row))
        return example_losses(
            given.model,
            batch,
            given.loss,
            run=lambda: forward(given.model, inputs),
            rerun=lambda: _after_blocks(given),
            copies=copies,
        )


def _resume(stack: ExitStack, given: Resumption, masks: Tensor, *, site: Site, mode: Mode) -> None:
    """Let what comes before ``site`` return its recording, and the last block run on what is needed."""
    copies, rows = masks.shape[0], given.batch.num_rows
    here = given.recording.sites[site.id]
    start = here.projection.began if mode == "shared" else here.attention.began
    done = given.recording.done(before=start)
    stack.enter_context(returning(done, copies=copies, rows=rows))
    if mode == "shared":
        changes = (masks - given.base)[:, given.anatomy.columns[site.id]]
        stack.enter_context(replaced(shared_forwards(site, here, changes=changes, rows=rows)))
    computed = mode == "shared" and given.tail is not None and given.tail.site is site
    stack.enter_context(narrowed(given.tail, copies=copies, rows=rows, computed=computed))


def _untouched(
    given: Resumption, touched: Sequence[Site]
) -> Mapping[nn.Module, Callable[..., Any]]:
    """Return the compiled forwards of those blocks in which no hook and no forward of ours is."""
    attentions = {given.model.get_submodule(site.path) for site in touched}
    narrow = given.tail.block.module if given.tail else None
    return {
        block: function
        for block, function in given.compiled.items()
        if block is not narrow and attentions.isdisjoint(block.modules())
    }


def _after_blocks(given: Resumption) -> Any:
    with returning(given.recording.done()):
        return forward(given.model, given.batch.inputs)


def _columns(anatomy: Anatomy, site: Site) -> range:
    where = anatomy.columns[site.id]
    return range(where.start, where.stop)


def _still_gated(given: Resumption, masks: Tensor, *, site: Site, mode: Mode) -> Anatomy:
    """Return the anatomy of those attentions that run under gates other than one: those before ``site`` are recordings."""
    open_everywhere = (masks == 1).all(dim=0)
    anatomy, calls = given.anatomy, given.recording.sites
    ended = {
        id_
        for id_, call in calls.items()
        if mode != "stacked" and call.attention.ended < calls[site.id].attention.began
    }
    if mode == "shared":
        ended.add(site.id)
    return Anatomy(
        anatomy.model_type,
        tuple(
            one
            for one in anatomy.sites
            if one.id not in ended and not bool(open_everywhere[anatomy.columns[one.id]].all())
        ),
        anatomy.refused,
    )
