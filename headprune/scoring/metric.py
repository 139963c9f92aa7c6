"""Leave one out, and look at the metric itself."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.replay import losses
from headprune.scoring.estimate import Estimate
from headprune.tasks.metrics import Compute, Metric, Numbers, bootstrap
from headprune.tasks.task import Task

_RESAMPLES = 200
_FEWEST_RESAMPLES = 20


def metric_drop(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    task: Task,
    statistic: Metric,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by how much worse the metric is without them, on the calibration rows.

    Standard errors are those of the paired difference under the bootstrap over examples (Efron 1979).

    Args:
        model: The model.
        anatomy: Its anatomy.
        batches: Calibration data.
        task: What predicts.
        statistic: The metric.
        seed: Of the bootstrap.
        context: How to go over the data.
    """
    heads = len(anatomy.heads)
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    found = losses(
        model,
        anatomy,
        batches=batches,
        loss=task.predicted_loss or _predicted(task),
        masks=masks,
        context=context,
        name="ablation-metric",
    )
    predictions = found.double().numpy()
    references = np.empty(predictions.shape[1])
    for batch in batches:
        references[batch.indices.numpy()] = batch.targets.double().numpy()
    sign = 1 if statistic.higher_is_better else -1

    def drops(rows: Any, compute: Compute) -> Numbers:
        values = [compute(one[rows], references[rows]) for one in predictions]
        return sign * (values[0] - np.array(values[1:]))

    start = perf_counter()
    whole = torch.from_numpy(drops(slice(None), statistic.compute))
    count = statistic.num_resamples(
        perf_counter() - start, largest=_RESAMPLES, smallest=_FEWEST_RESAMPLES
    )
    resampled = bootstrap(
        lambda rows: drops(rows, statistic.or_nan), len(references), seed=seed, resamples=count
    )
    spread = np.nanstd(resampled, axis=0, ddof=1)
    return Estimate(whole, torch.from_numpy(spread), len(references))


def _predicted(task: Task) -> Loss:
    """Return the predictions in a loss's place: what ``losses`` says of every mask is then what the model predicts under it."""

    def predicted(outputs: Any, batch: Batch) -> Tensor:
        return task.predict(outputs, batch)[0].float()

    return predicted
