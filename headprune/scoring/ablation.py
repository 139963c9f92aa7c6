"""What the loss, or the metric itself, does when heads are silent: one alone, or one after the other in random orders."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from headprune.scoring.request import Estimate, ScoreRequest, mean_and_error
from headprune.tasks.metrics import Compute, Metric, Numbers, bootstrap

_RESAMPLES = 200
_FEWEST_RESAMPLES = 20


def ablation(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n [l_n(without h) - l_n]``; the standard error is that of the paired differences.

    The exact effect of removing one head, and no more: heads that can replace each other all look unimportant, so it is an
    honest measurement and a poor order for removing many (Michel et al. 2019, section 3). With a metric as the objective, the
    score is how much worse the metric is without the head.
    """
    heads = len(request.anatomy.heads)
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    if request.statistic is not None:
        predictions = request.losses(masks, name="ablation-metric")
        return _metric_drop(request, request.statistic, predictions)
    losses = request.losses(masks, name="ablation")
    differences = losses[1:] - losses[0]
    return mean_and_error(differences.sum(1), differences.square().sum(1), n=differences.shape[1])


def _metric_drop(
    request: ScoreRequest, metric: Metric, predictions: Float64[Tensor, "masks examples"]
) -> Estimate:
    """Return how much worse the metric is without each head; the first row of ``predictions`` is with all heads.

    Standard errors are of the paired difference, by the bootstrap over examples (Efron 1979).
    """
    by_mask = predictions.numpy()
    references = np.empty(by_mask.shape[1])
    for batch in request.batches:
        references[batch.indices.numpy()] = batch.targets.double().numpy()
    sign = 1 if metric.higher_is_better else -1

    def drops(rows: Any, compute: Compute) -> Numbers:
        values = [compute(one[rows], references[rows]) for one in by_mask]
        return sign * (values[0] - np.array(values[1:]))

    start = perf_counter()
    whole = torch.from_numpy(drops(slice(None), metric.compute))
    count = metric.num_resamples(
        perf_counter() - start, largest=_RESAMPLES, smallest=_FEWEST_RESAMPLES
    )
    resampled = bootstrap(
        lambda rows: drops(rows, metric.or_nan),
        len(references),
        seed=request.seed,
        resamples=count,
    )
    spread = np.nanstd(resampled, axis=0, ddof=1)
    return Estimate(whole, torch.from_numpy(spread), len(references))


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
