"""Leave one out: what the loss, or the metric itself, does when a head is silent."""

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
