"""A head's fair share of the loss: what removing it costs, on average over all orders in which heads could be removed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headprune.scoring.request import Estimate, ScoreRequest

_ORDERS = 16
_AT_ONCE = 32
# Of what removing all heads costs: nearer to that, the rest of an order is taken to cost nothing.
_TOLERANCE = 0.01


def shapley(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_pi [l(without pi up to h) - l(without pi before h)]`` over 16 random orders ``pi`` of removal.

    ``l`` is the mean loss of the data. Unlike leaving one out, it sees heads that stand in for each other. An order ends early
    where the loss has come near that of a model without heads. The standard error is over the orders, not over examples; the
    cost is up to 16 forwards per head.

    Source: Ghorbani, Zou, "Data Shapley", ICML 2019, algorithm 1 (truncated Monte Carlo), for heads in place of data.
    """
    heads = len(request.anatomy.heads)
    generator = torch.Generator().manual_seed(request.seed)
    orders = [torch.randperm(heads, generator=generator) for _ in range(_ORDERS)]
    ends = torch.stack([torch.ones(heads), torch.zeros(heads)])
    full, empty = request.losses(ends, name="shapley").mean(1)
    near = _TOLERANCE * (empty - full).abs()
    costs = torch.zeros(_ORDERS, heads, dtype=torch.float64)
    for index, order in enumerate(orders):
        last = full
        for start in range(0, heads, _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            masks = _without(order, range(start + 1, start + len(part) + 1))
            losses = request.losses(masks, name=f"shapley {index + 1} of {_ORDERS}").mean(1)
            costs[index, part] = losses.diff(prepend=last[None])
            last = losses[-1]
            if (last - empty).abs() < near:
                break
    error = costs.std(0) / _ORDERS**0.5
    return Estimate(costs.mean(0), error, request.num_examples)


def _without(order: Tensor, counts: Sequence[int]) -> Tensor:
    """Return masks without the first so many heads of an order."""
    masks = torch.ones(len(counts), len(order))
    for mask, count in zip(masks, counts, strict=True):
        mask[order[:count]] = 0
    return masks
