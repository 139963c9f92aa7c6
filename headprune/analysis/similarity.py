"""How alike heads are: the Jensen-Shannon divergence of what they look at, a map, clusters, and who does what another did."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import log
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.call import Vocabulary, attention_call
from headprune.analysis.distances import clustered, scaled
from headprune.analysis.likeness import SMOOTHING, Compared, Pair
from headprune.analysis.statistics import ratios
from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import Z_95
from headprune.attention import WeightReader, plain_attention, weight_reader
from headprune.batch import Batch
from headprune.errors import UnsupportedError
from headprune.heads import HeadId
from headprune.passes import RunContext, Work, each_batch, summed
from headprune.placement import input_device

_MOST_QUERIES = 64
_MOST_NUMBERS = 2**19
_TINY = 1e-30  # nothing has a logarithm


@dataclass(frozen=True)
class _Group:
    """Attentions that look from the same texts at the same texts."""

    sites: tuple[Site, ...]

    @property
    def heads(self) -> tuple[HeadId, ...]:
        return tuple(HeadId(site.id, head) for site in self.sites for head in site.heads)

    @property
    def pairs(self) -> Tensor:
        """Indices of both heads of every pair: [2, pairs], the smaller first."""
        return torch.triu_indices(len(self.heads), len(self.heads), 1)


@torch.no_grad()
def compare_heads(
    model: PreTrainedModel, anatomy: Anatomy, batches: Sequence[Batch], *, context: RunContext
) -> tuple[Compared, ...]:
    """Return how alike heads are that look from the same texts at the same texts.

    The divergence of two heads is the mean over queries of ``JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2``, with p and q
    their attention, 0.001 of it spread evenly over the row's keys (Clark et al. 2019, section 6, who sum over queries; the
    smoothing is that of their code). It is the square of a distance in a Euclidean space (Fuglede and Topsoe 2004), so classical
    scaling would show it without loss if all its dimensions were taken. Clusters are made of these distances by the linkage of
    Ward (1963), as many as make the mean silhouette largest (Rousseeuw 1987). Standard errors are those of a ratio over examples.

    Only sums over pairs of heads are kept. Of a row with more than 64 queries, 64 count, evenly spread.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        batches: What it is given.
        context: How the work runs.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights.
    """
    groups = _groups(anatomy)
    sizes = [3 * group.pairs.shape[1] + 3 for group in groups]
    with plain_attention(model):
        read = weight_reader(model, anatomy, batches[0])
        work: Work[Batch] = Work(
            lambda batch: _sums(read, groups, batch.to(input_device(model))),
            shape=lambda _batch: (sum(sizes),),
            dtype=torch.float64,
            join=summed,
        )
        parts = each_batch(batches, work, context=context, name="how alike heads are")
    sums = torch.stack(parts).sum(0).split(sizes)
    return tuple(_compared(group, part) for group, part in zip(groups, sums, strict=True))


def _groups(anatomy: Anatomy) -> tuple[_Group, ...]:
    """Return the attentions by stack and kind; those with fewer than two heads have nothing to compare."""
    by_kind: dict[tuple[str, str], list[Site]] = {}
    for site in anatomy.sites:
        by_kind.setdefault((site.id.stack, site.id.kind), []).append(site)
    groups = (_Group(tuple(sites)) for sites in by_kind.values())
    return tuple(group for group in groups if len(group.heads) > 1)


def _sums(read: WeightReader, groups: Sequence[_Group], batch: Batch) -> Float[Tensor, " sums"]:
    """Return, group by group, sums over examples: of totals, of their squares and products with counts, and of counts."""
    calls: dict[tuple[Any, int], Float[Tensor, "queries heads keys"]] = {}
    owners: dict[Any, Tensor] = {}

    def keep(site: Site, weights: Tensor) -> None:
        call = attention_call(site, weights, batch, Vocabulary())
        chosen = _spread(call.is_query)
        real = call.is_key[:, None, None].float()
        smooth = (1 - SMOOTHING) * weights + SMOOTHING * real / real.sum(-1, keepdim=True)
        times = sum(key[0] == site.id for key in calls)
        calls[site.id, times] = smooth.transpose(1, 2)[chosen]
        rows = batch.example_of_row.repeat_interleave(len(weights) // batch.num_rows)
        owners[site.id] = rows.to(chosen.device)[chosen.nonzero()[:, 0]]

    read(batch, keep)
    return torch.cat([_sums_of_group(group, calls, owners, batch.num_examples) for group in groups])


def _sums_of_group(
    group: _Group, calls: dict[tuple[Any, int], Tensor], owners: dict[Any, Tensor], examples: int
) -> Float[Tensor, " sums"]:
    first, second = group.pairs
    total, squares, products = torch.zeros(3, len(first), dtype=torch.float64)
    counts = torch.zeros(3, dtype=torch.float64)
    sites = [site for site in group.sites if site.heads]
    times = min(sum(key[0] == site.id for key in calls) for site in sites)
    shapes = {(len(calls[site.id, 0]), calls[site.id, 0].shape[2]) for site in sites}
    if len(shapes) > 1:
        raise UnsupportedError(
            f"the attentions {sites[0].id} to {sites[-1].id} look at different positions, and can't be compared",
            where="similarity",
            hint="leave `similarity` out",
        )
    for example in range(examples):
        mine = [owners[site.id] == example for site in sites]
        together = torch.zeros(len(first), dtype=torch.float64)
        for time in range(times):
            weights = [calls[site.id, time][own] for site, own in zip(sites, mine, strict=True)]
            every = _divergences(torch.cat(weights, dim=1).transpose(0, 1))
            together += every[first, second].cpu().double()
        count = int(mine[0].sum()) * times
        total += together
        squares += together**2
        products += together * count
        counts += torch.tensor([count, count**2, count > 0])
    return torch.cat([total, squares, products, counts])


def _spread(is_query: Bool[Tensor, "rows queries"]) -> Bool[Tensor, "rows queries"]:
    """Return which queries count: all of a row, or so many of them, evenly spread."""
    rank = is_query.cumsum(1) - 1
    count = is_query.sum(1, keepdim=True).clamp_min(1)
    steps = rank * _MOST_QUERIES // count
    return is_query & ((rank == 0) | (steps != (rank - 1) * _MOST_QUERIES // count))


def _divergences(weights: Float[Tensor, "heads queries keys"]) -> Float[Tensor, "heads heads"]:
    """Return the Jensen-Shannon divergences of heads, summed over queries; above the diagonal."""
    heads, queries, keys = weights.shape
    result = weights.new_zeros(heads, heads)
    step = max(1, _MOST_NUMBERS // (heads * keys))
    for start in range(0, queries, step):
        part = weights[:, start : start + step].flatten(1) + _TINY
        own = (part * part.log()).sum(-1)
        mass = part.sum(-1)
        for head in range(heads - 1):
            others = slice(head + 1, None)
            both = part[head] + part[others]
            # Twice the entropy of their mean, which is half of both.
            mixed = (mass[head] + mass[others]) * log(2) - both.log().mul_(both).sum(-1)
            result[head, others] += (mixed + own[head] + own[others]) / 2
    return result.clamp_min_(0)


def _compared(group: _Group, sums: Float[Tensor, " sums"]) -> Compared:
    """Return the means with their standard errors, the map and the clusters."""
    first, second = group.pairs
    total, squares, products = sums[:-3].view(3, -1)
    count, counts_squared, examples = sums[-3:]
    mean, error = ratios(total, count, squares, products, counts_squared, examples)
    size = len(group.heads)
    full, full_error = torch.zeros(2, size, size, dtype=torch.float64)
    full[second, first], full_error[second, first] = mean, error
    square = (full + full.T).numpy()
    positions, explained = scaled(square)
    return Compared(
        heads=group.heads,
        divergences=tuple(tuple(full[row, :row].tolist()) for row in range(size)),
        errors=tuple(
            tuple(full_error[row, :row].tolist() if examples > 1 else [None] * row)
            for row in range(size)
        ),
        queries=int(count),
        examples=int(examples),
        positions=positions,
        explained=explained,
        clusters=clustered(np.sqrt(square)),
    )


def closest(groups: Sequence[Compared], *, count: int = 10) -> tuple[Pair, ...]:
    """Return the pairs of heads that are most alike, the closest first.

    Args:
        groups: The heads compared.
        count: How many pairs.
    """
    every = (
        (value, group, row, column)
        for group in groups
        for row, values in enumerate(group.divergences)
        for column, value in enumerate(values)
    )
    best = nsmallest(count, every, key=lambda one: one[0])
    return tuple(_pair(group, group.heads[low], group.heads[high]) for _, group, high, low in best)


def successors(groups: Sequence[Compared], removed: Collection[HeadId]) -> tuple[Pair, ...]:
    """Return for every removed head the kept head that is nearest to it; none where no head of its group is kept.

    Args:
        groups: The heads compared.
        removed: The heads that are removed.
    """
    return tuple(
        _pair(group, head, min(kept, key=lambda other: group.divergence(head, other)[0]))
        for group in groups
        if (kept := [head for head in group.heads if head not in removed])
        for head in group.heads
        if head in removed
    )


def _pair(group: Compared, head: HeadId, nearest: HeadId) -> Pair:
    value, error = group.divergence(head, nearest)
    every = [other for row in group.divergences for other in row]
    return Pair(
        head=head,
        nearest=nearest,
        divergence=value,
        low=None if error is None else max(0.0, value - Z_95 * error),
        high=None if error is None else value + Z_95 * error,
        closer_than=sum(other > value for other in every) / len(every),
    )
