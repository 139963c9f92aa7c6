"""Run several masks in one forward, from the attention on in which they first differ from what was recorded.

Everything that had ended before that attention's output projection began returns its recording: blocks, embeddings, whole
encoders, and the attention itself, for a head can't change the other heads of its layer. What the projection would put out
under a mask is its recorded output and the difference ``z_h W_O,h`` of the heads that changed (the projection is a sum over
heads: Vaswani et al. 2017, section 3.2.2). The model's own forward does the rest, on all masks stacked on the batch axis.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward
from headprune.masking import gated
from headprune.replay.logits import example_losses
from headprune.replay.recording import Recording, SiteCall, replaced, returning
from headprune.replay.rows import map_tensors, repeat

Mode = Literal["shared", "block", "stacked", "plain"]
"""How masks are run that first differ in a certain attention, from the cheapest to the one that is always right.

``shared``: that attention is not run again; ``block``: it is, but nothing before it; ``stacked``: everything runs, many masks
in one forward; ``plain``: one mask per forward.
"""
MODES: tuple[Mode, ...] = ("shared", "block", "stacked", "plain")


@dataclass(frozen=True, eq=False)
class Resumption:
    """What running masks takes besides the masks."""

    model: PreTrainedModel
    anatomy: Anatomy
    batch: Batch
    loss: Loss
    base: Float[Tensor, " heads"]
    recording: Recording


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
    model, batch, recording = given.model, given.batch, given.recording
    copies, rows = masks.shape[0], batch.num_rows
    inputs = repeat(dict(batch.inputs), copies=copies, rows=rows)
    with ExitStack() as stack:
        if mode != "stacked":
            here = recording.sites[site.id]
            start = here.projection.began if mode == "shared" else here.attention.began
            stack.enter_context(returning(recording.done(before=start), copies=copies, rows=rows))
        if mode == "shared":
            stack.enter_context(replaced(_shared(given, masks, site, here)))
        running = _still_gated(given.anatomy, masks, without=site if mode == "shared" else None)
        if running.sites:
            columns = [column for s in running.sites for column in _columns(given.anatomy, s)]
            gates = masks[:, columns].to(_device(batch), non_blocking=True)
            by_row = gates.repeat_interleave(rows, dim=0) if copies > 1 else gates[0]
            stack.enter_context(gated(model, running, gates=by_row))
        return example_losses(
            model,
            batch,
            given.loss,
            run=lambda: forward(model, inputs),
            rerun=lambda: _after_blocks(given),
            copies=copies,
        )


def _after_blocks(given: Resumption) -> Any:
    with returning(given.recording.done()):
        return forward(given.model, given.batch.inputs)


def _device(batch: Batch) -> torch.device:
    return next(iter(batch.inputs.values())).device


def _columns(anatomy: Anatomy, site: Site) -> range:
    where = anatomy.columns[site.id]
    return range(where.start, where.stop)


def _still_gated(anatomy: Anatomy, masks: Tensor, *, without: Site | None) -> Anatomy:
    """Return the anatomy of those attentions that run under gates other than one."""
    open_everywhere = (masks == 1).all(dim=0)
    return Anatomy(
        anatomy.model_type,
        tuple(
            site
            for site in anatomy.sites
            if site is not without and not bool(open_everywhere[anatomy.columns[site.id]].all())
        ),
        anatomy.refused,
    )


def can_share(model: PreTrainedModel, site: Site, here: SiteCall, rows: int) -> bool:
    """Whether an attention's output projection is a plain sum over heads whose parts can be told apart."""
    projection = model.get_submodule(site.output)
    z, output = here.projection.read, here.projection.output
    if type(projection) not in (nn.Linear, Conv1D) or site.gate != site.output:
        return False
    if not (isinstance(z, Tensor) and isinstance(output, Tensor)) or z.dim() != 3:
        return False
    weight = projection.weight
    width = weight.shape[0] if isinstance(projection, Conv1D) else weight.shape[1]
    return (
        weight.device == z.device
        and z.shape[-1] == width
        and z.shape[0] == rows
        and site.rows == "batch-major"
        and (_ended_before(here) or _holds(here.attention.output, output))
    )


def _ended_before(here: SiteCall) -> bool:
    return here.attention.ended < here.projection.began


def _holds(value: Any, tensor: Tensor) -> bool:
    """Whether ``tensor``, or a view of all of it, is somewhere in ``value``."""
    found: list[bool] = []
    map_tensors(value, lambda item: (found.append(_is_view(item, tensor)), item)[1])
    return any(found)


def _is_view(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def _shared(
    given: Resumption, masks: Tensor, site: Site, here: SiteCall
) -> Mapping[nn.Module, Any]:
    """Return forwards that put out what the attention puts out under each mask."""
    rows = given.batch.num_rows
    projection = here.projection
    output = _projected(given, masks, site, here)
    forwards: dict[nn.Module, Any] = {projection.module: lambda *_args, **_kwargs: output}
    if not _ended_before(here):

        def put_in(tensor: Tensor) -> Tensor:
            if _is_view(tensor, projection.output):
                return output.view(-1, *tensor.shape[1:])
            return repeat(tensor, copies=masks.shape[0], rows=rows)

        attended = map_tensors(here.attention.output, put_in)
        forwards[here.attention.module] = lambda *_args, **_kwargs: attended
    return forwards


def _projected(given: Resumption, masks: Tensor, site: Site, here: SiteCall) -> Tensor:
    """Return the output projection's output under each mask, ``out + sum_h (mask_h - base_h) z_h W_O,h``."""
    columns = given.anatomy.columns[site.id]
    changes = masks[:, columns] - given.base[columns]
    # As many heads for every mask as the one that changes most; the others are changed by zero.
    most = max(1, int((changes != 0).sum(dim=1).max()))
    amounts, heads = changes.abs().topk(most, dim=1)
    amounts = changes.gather(1, heads)
    return _sums(site, here, heads=heads, amounts=amounts)


def _sums(site: Site, here: SiteCall, *, heads: Tensor, amounts: Tensor) -> Tensor:
    z, output = here.projection.read, here.projection.output
    masks, most = heads.shape
    width = z.shape[-1] // site.head_dim
    present = {len(site.heads): site.heads, len(site.slots): site.slots}.get(
        width, tuple(range(site.num_heads))
    )
    places = torch.tensor([present.index(head) for head in site.heads])[heads].flatten()
    places = places.to(z.device, non_blocking=True)
    scale = amounts.to(z.device, z.dtype, non_blocking=True)
    weight = here.projection.module.weight
    by_head = (weight if isinstance(here.projection.module, Conv1D) else weight.T).unflatten(
        0, (width, site.head_dim)
    )
    # [masks, tokens, changed heads * head_dim] times [masks, changed heads * head_dim, out]
    parts = z.flatten(0, 1).unflatten(-1, (width, site.head_dim)).transpose(0, 1)[places]
    parts = parts.unflatten(0, (masks, most)) * scale[:, :, None, None]
    parts = parts.transpose(1, 2).flatten(2)
    weights = by_head[places].unflatten(0, (masks, most)).flatten(1, 2)
    base = output.flatten(0, 1)[None].expand(masks, -1, -1)
    return torch.baddbmm(base, parts, weights).unflatten(1, output.shape[:2]).flatten(0, 1)
