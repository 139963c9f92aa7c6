"""Measure how good a model is: the task's metric with its interval."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, forward, num_examples, per_example
from headprune.errors import DataError
from headprune.masking import gated
from headprune.passes import (
    SILENT,
    Parts,
    RunContext,
    Work,
    each_batch,
    halves_of_batch,
    one_after_another,
)
from headprune.placement import input_device, not_finite
from headprune.replay.logits import example_losses
from headprune.replay.losses import losses
from headprune.tasks.doubts import doubts_of_classes, doubts_of_numbers
from headprune.tasks.metrics import RESAMPLES, Metric, interval
from headprune.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the metric compares, in the order of the data.

    Args:
        predictions: [examples].
        references: [examples].
        losses: The task's loss, [examples].
        classes: How many classes the model has, where it predicts classes.
    """

    predictions: NDArray[np.float64]
    references: NDArray[np.float64]
    losses: NDArray[np.float64]
    classes: int | None = None


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    task: Task,
    *,
    batches: Sequence[Batch],
    track: Callable[[Sequence[Batch], str], Iterable[Batch]] | None = None,
) -> Predictions:
    """Run the model over the data once; ``track(batches, description)`` shows progress.

    Raises:
        ModelError: A prediction is infinite or not a number.
        MemoryLimitError: Memory ran out on a single example.
    """
    parts = Parts("evaluating", halves_of_batch)
    tracked = track(batches, "evaluating") if track else batches
    results = [
        torch.cat(parts.run(batch, partial(_predict, model, task)), dim=1) for batch in tracked
    ]
    return _predictions(_in_order(results, batches), model, task)


def _predict(model: PreTrainedModel, task: Task, batch: Batch) -> Float64[Tensor, "three examples"]:
    """Return predictions, losses and references."""
    batch = batch.to(input_device(model))
    if task.predicted_loss is None:
        outputs = forward(model, batch.inputs)
        predicted, true = task.predict(outputs, batch)
        lost = per_example(task.loss, outputs, batch)
    else:
        run = partial(forward, model, batch.inputs)
        predicted = example_losses(model, batch, task.predicted_loss, run=run)[0]
        true = batch.targets
        lost = predicted / true
    return torch.stack([part.cpu().double() for part in (predicted, lost, true)])


def _predictions(
    results: Float64[Tensor, "three examples"], model: PreTrainedModel, task: Task
) -> Predictions:
    _require_finite(results[0], model)
    predicted, lost, true = results.numpy()
    return Predictions(predicted, true, lost, task.num_classes(model.config))


def _require_finite(predictions: Tensor, model: PreTrainedModel) -> None:
    if not bool(predictions.isfinite().all()):
        count = int((~predictions.isfinite()).sum())
        what = f"{count} of {predictions.numel()} predictions are not finite"
        raise not_finite(what, model, where="evaluation")


@torch.no_grad()
def predict_masked(
    model: PreTrainedModel,
    anatomy: Anatomy,
    task: Task,
    *,
    batches: Sequence[Batch],
    masks: Float[Tensor, "masks heads"],
    context: RunContext = SILENT,
) -> tuple[Predictions, ...]:
    """Run the model over the data under every mask, nothing cut; return the predictions under each, with their losses.

    Where the predictions are a loss, :func:`~headprune.replay.losses` makes them, and the task's loss is their mean over the
    references. Elsewhere one forward a mask and batch gives prediction and loss at once.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy; columns of ``masks`` are ``anatomy.heads``, 1 keeps and 0 silences.
        task: What is measured.
        batches: The data.
        masks: The masks.
        context: How to go over the data: progress, journal.

    Raises:
        ModelError: A prediction is infinite or not a number.
    """
    if task.predicted_loss is not None:
        predictions = losses(
            model, anatomy, batches=batches, loss=task.predicted_loss, masks=masks,
            context=context, name="evaluating",
        ).double()  # fmt: skip
        references = _in_order([batch.targets.double() for batch in batches], batches)
        results = [torch.stack([one, one / references, references]) for one in predictions]
    else:
        pieces = [(batch, mask) for mask in masks for batch in batches]
        work = Work[tuple[Batch, Tensor]](
            lambda piece: _predict_masked(model, anatomy, task, batch=piece[0], mask=piece[1]),
            shape=lambda piece: (3, piece[0].num_examples),
            dtype=torch.float64,
            join=one_after_another(1),
            halves=lambda piece: [(half, piece[1]) for half in piece[0].halves()],
        )
        key = f"-{sha256(masks.numpy().tobytes()).hexdigest()[:8]}"
        parts = each_batch(pieces, work, context=context, name="evaluating", key=key)
        starts = range(0, len(parts), len(batches))
        results = [_in_order(parts[first : first + len(batches)], batches) for first in starts]
    return tuple(_predictions(result, model, task) for result in results)


def _in_order(parts: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """Put results [..., examples] of the batches together, in the order of the data."""
    together = parts[0].new_empty(*parts[0].shape[:-1], num_examples(batches))
    for batch, part in zip(batches, parts, strict=True):
        together[..., batch.indices] = part
    return together


def _predict_masked(
    model: PreTrainedModel, anatomy: Anatomy, task: Task, *, batch: Batch, mask: Tensor
) -> Float64[Tensor, "three examples"]:
    with gated(model, anatomy, gates=mask):
        return _predict(model, task, batch)


@dataclass(frozen=True)
class MetricValue:
    """A metric's value, or the difference of two models' values on the same examples.

    Args:
        value: The value.
        interval: Its 95 % bootstrap interval; of a difference that of the paired difference.
        higher_is_better: Which direction is better.
        seed: Of the bootstrap.
        resamples: How many there were.
    """

    value: float
    interval: tuple[float, float]
    higher_is_better: bool
    seed: int
    resamples: int


def metric_with_interval(
    predictions: Predictions,
    metric: Metric,
    *,
    seed: int,
    other: Predictions | None = None,
    notify: Callable[[str], None] | None = None,
) -> MetricValue:
    """Return a metric's value and its interval; of the paired difference to another model's predictions where there are some.

    ``notify`` is called where the metric takes so long that the interval is of fewer resamples.

    Raises:
        DataError: The metric isn't defined on these examples.
    """
    references = predictions.references
    compared = [predictions.predictions] + ([other.predictions] if other else [])
    start = perf_counter()
    values = [metric.compute(one, references) for one in compared]
    seconds = perf_counter() - start
    value = values[0] - sum(values[1:])
    if not math.isfinite(value):
        raise DataError(
            f"{metric.name} is not defined on these {len(references)} examples (a constant, or an overflow)",
            where="evaluation data",
            hint="give more rows, or another `metric`",
        )
    resamples = metric.num_resamples(seconds, largest=RESAMPLES, smallest=100)
    if notify is not None and resamples < RESAMPLES:
        notify(f"{metric.name} takes {seconds:.2g} s: its interval is of {resamples} resamples")
    bounds = interval(metric, compared, references, seed=seed, resamples=resamples)
    return MetricValue(value, bounds, metric.higher_is_better, seed, resamples)


def doubts_of(predictions: Predictions, task: Task, config: Any) -> tuple[str, ...]:
    """Return what predictions make doubtful of the labels that they are compared with."""
    sides = predictions.predictions, predictions.references
    if task.row.predicts == "classes":
        return doubts_of_classes(*sides, config.id2label)
    if task.row.predicts == "numbers":
        return doubts_of_numbers(*sides, same_scale=task.row.same_scale)
    return ()
