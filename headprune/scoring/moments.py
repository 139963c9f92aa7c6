"""What heads put out, coordinate by coordinate: moments of ``z`` over the positions of the data, in one forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.heads import SiteId
from headprune.masking import observed
from headprune.passes import RunContext, Work, each_batch, summed
from headprune.placement import input_device


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over positions of a site's ``z``: of its size, of itself, of its square."""

    size: Float64[Tensor, "heads head_dim"]
    mean: Float64[Tensor, "heads head_dim"]
    square: Float64[Tensor, "heads head_dim"]

    @property
    def variance(self) -> Float64[Tensor, "heads head_dim"]:
        """The variance over positions."""
        return (self.square - self.mean.square()).clamp_min(0)


@torch.no_grad()
def moments(
    model: PreTrainedModel, anatomy: Anatomy, *, batches: Sequence[Batch], context: RunContext
) -> Mapping[SiteId, Moments]:
    """Return the moments of every site's ``z`` over all positions that aren't padding."""
    widths = [len(site.heads) * site.head_dim for site in anatomy.sites]

    def sums(batch: Batch) -> Tensor:
        batch = batch.to(input_device(model))
        with observed(model, anatomy) as seen:
            forward(model, batch.inputs)
        parts = [_sums(site, seen[site.id], batch) for site in anatomy.sites]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    work = Work(sums, shape=lambda _batch: (4, sum(widths)), dtype=torch.float64, join=summed)
    found = each_batch(batches, work, context=context, name="activations")
    by_site = torch.stack(found).sum(0).split(widths, dim=1)
    return {
        site.id: Moments(*(part[:3] / part[3].clamp_min(1)).unflatten(1, (-1, site.head_dim)))
        for site, part in zip(anatomy.sites, by_site, strict=True)
    }


def _sums(site: Site, calls: Sequence[Tensor], batch: Batch) -> Float64[Tensor, "4 heads head_dim"]:
    """Return the sums over positions of ``|z|``, ``z``, ``z^2`` and 1."""
    total = torch.zeros(4, len(site.heads), site.head_dim, dtype=torch.float64)
    for z in calls:
        real = real_positions(site, z.shape[:-2], batch)
        kept = (z.flatten(0, -3) if real is None else z[real]).cpu().double()
        ones = torch.ones_like(kept)
        total += torch.stack([kept.abs().sum(0), kept.sum(0), kept.square().sum(0), ones.sum(0)])
    return total


def real_positions(site: Site, shape: Sequence[int], batch: Batch) -> Tensor | None:
    """Return which positions of what a site reads, which begins with ``shape``, aren't padding; None where all count.

    Where rows were rearranged (windows, patches), all do.
    """
    mask = padding_mask(site, batch)
    if mask is None:
        return None
    mask = mask.T if site.rows == "time-major" else mask
    if tuple(shape) == (mask.numel(),):
        return mask.flatten()
    return mask if tuple(shape) == tuple(mask.shape) else None


def row_of_position(
    site: Site, shape: Sequence[int], batch: Batch
) -> Int[Tensor, " positions"] | None:
    """Return the row of the batch of every position, flattened, of what a site reads, which begins with ``shape``.

    Where the model has split rows, into windows say, the parts of a row follow each other. None where rows can't be told apart:
    images of different sizes in one row.
    """
    rows, positions = batch.num_rows, prod(shape)
    if (positions if site.rows == "time-major" else shape[0]) % rows:
        return None
    place = torch.arange(positions, device=batch.example_of_row.device)
    return place % rows if site.rows == "time-major" else place * rows // positions


def padding_mask(site: Site, batch: Batch) -> Tensor | None:
    """Return which positions of the rows that a site's stack reads aren't padding [rows, length], if that is told."""
    name = "decoder_attention_mask" if site.id.stack == "decoder" else "attention_mask"
    mask = batch.inputs.get(name)
    return mask.bool() if mask is not None and mask.dim() == 2 else None
