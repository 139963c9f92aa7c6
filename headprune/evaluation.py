"""Measure how good a model is: the task's metric with its interval."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.artefact import Artefact, Latency
from headprune.batch import Batch, forward, num_examples, per_example
from headprune.errors import DataError
from headprune.masking import gated
from headprune.memory import Parts, halves_of_batch
from headprune.passes import SILENT, RunContext, Work, each_batch, one_after_another
from headprune.placement import input_device, not_finite
from headprune.replay import example_losses, losses
from headprune.tasks import Task, metrics
from headprune.tasks.doubts import doubts_of_classes, doubts_of_numbers
from headprune.tasks.metrics import Statistic


class Measurement(Artefact):
    """A metric with everything that is needed to believe it, or to compare it with another."""

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    higher_is_better: bool
    parameters: int
    heads: int | None
    latency_ms: dict[str, Latency] = {}
    kv_cache_bytes_per_token: int | None = None
    limit: int | None = None
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}


class EvalResult(Measurement):
    """What ``eval`` measured; ``seed`` is that of the bootstrap and of the rows drawn."""

    written_by = "eval --json"

    seed: int


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the metric compares, in the order of the data.

    Args:
        predictions: [examples].
        references: [examples].
        classes: How many classes the model has, where it predicts classes.
    """

    predictions: NDArray[np.float64]
    references: NDArray[np.float64]
    classes: int | None = None


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    task: Task,
    *,
    batches: Sequence[Batch],
    track: Callable[[Sequence[Batch], str], Iterable[Batch]] | None = None,
) -> Predictions:
    """Run the model over the data once.

    Raises:
        ModelError: A prediction is infinite or not a number.
        MemoryLimitError: Memory ran out on a single example.
    """
    n = sum(batch.num_examples for batch in batches)
    device = input_device(model)
    predictions, references = torch.empty(n).double(), torch.empty(n).double()
    parts = Parts("evaluating", halves_of_batch)

    def compute(batch: Batch) -> Tensor:
        predicted, true = _predict(model, task, batch.to(device))
        return torch.stack([predicted.cpu().double(), true.cpu().double()])

    for batch in track(batches, "evaluating") if track else batches:
        found = torch.cat(parts.run(batch, compute), dim=1)
        predictions[batch.indices], references[batch.indices] = found
    _insist_on_numbers(predictions, model)
    classes = task.num_classes(model.config)
    return Predictions(predictions.numpy(), references.numpy(), classes)


def _insist_on_numbers(predictions: Tensor, model: PreTrainedModel) -> None:
    if not bool(predictions.isfinite().all()):
        count = int((~predictions.isfinite()).sum())
        what = f"{count} of {predictions.numel()} predictions are not finite"
        raise not_finite(what, model, where="evaluation")


def _predict(model: PreTrainedModel, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    if task.predicted_loss is None:
        return task.predict(forward(model, batch.inputs), batch)
    found = example_losses(
        model, batch, task.predicted_loss, run=lambda: forward(model, batch.inputs)
    )
    return found[0], batch.targets


@dataclass(frozen=True, eq=False)
class MaskedPredictions:
    """What the metric compares, and the task's loss of every example, under each of several masks.

    Args:
        predictions: [masks, examples].
        losses: [masks, examples].
        references: [examples].
        classes: How many classes the model has, where it predicts classes.
    """

    predictions: NDArray[np.float64]
    losses: NDArray[np.float64]
    references: NDArray[np.float64]
    classes: int | None = None

    def under(self, place: int) -> Predictions:
        """Return what the metric compares under one of the masks."""
        return Predictions(self.predictions[place], self.references, self.classes)


@torch.no_grad()
def predict_masked(
    model: PreTrainedModel,
    anatomy: Anatomy,
    task: Task,
    *,
    batches: Sequence[Batch],
    masks: Float[Tensor, "masks heads"],
    context: RunContext = SILENT,
) -> MaskedPredictions:
    """Run the model over the data under every mask, nothing cut.

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
        lost = predictions / references
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
        count = len(batches)
        found = torch.stack(
            [
                _in_order(parts[start : start + count], batches)
                for start in range(0, len(parts), count)
            ]
        )
        predictions, lost, references = found[:, 0], found[:, 1], found[0, 2]
    _insist_on_numbers(predictions, model)
    return MaskedPredictions(
        predictions.numpy(), lost.numpy(), references.numpy(), task.num_classes(model.config)
    )


def _in_order(parts: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """Put results [..., examples] of the batches together, in the order of the data."""
    together = parts[0].new_empty(*parts[0].shape[:-1], num_examples(batches))
    for batch, found in zip(batches, parts, strict=True):
        together[..., batch.indices] = found
    return together


def _predict_masked(
    model: PreTrainedModel, anatomy: Anatomy, task: Task, *, batch: Batch, mask: Tensor
) -> Float64[Tensor, "three examples"]:
    """Return predictions, losses and references under a mask."""
    batch = batch.to(input_device(model))
    with gated(model, anatomy, gates=mask):
        outputs = forward(model, batch.inputs)
    predicted, true = task.predict(outputs, batch)
    lost = per_example(task.loss, outputs, batch)
    return torch.stack([part.cpu().double() for part in (predicted, lost, true)])


def judge(
    found: Predictions,
    metric: str | Statistic,
    *,
    seed: int,
    higher_is_better: bool | None = None,
    other: Predictions | None = None,
    notify: Callable[[str], None] | None = None,
) -> tuple[float, tuple[float, float], bool]:
    """Return a metric's value, its 95 % bootstrap interval, and whether higher is better.

    With ``other`` (the same examples, predicted by another model) it is the difference ``found - other`` and the interval
    of the paired difference.

    Args:
        found: What the model predicted.
        metric: The metric, or its name.
        seed: Of the bootstrap.
        higher_is_better: Which way is better, of a metric that is named and not built in.
        other: What another model predicted.
        notify: Told where the metric takes so long that the interval is of fewer resamples.

    Raises:
        DataError: The metric isn't defined on these examples.
    """
    statistic = (
        metrics.load_metric(metric, higher_is_better=higher_is_better, classes=found.classes)
        if isinstance(metric, str)
        else metric
    )
    predictions = [found.predictions] + ([other.predictions] if other else [])
    start = perf_counter()
    value = metrics.difference(statistic, predictions, found.references)
    seconds = perf_counter() - start
    if not math.isfinite(value):
        raise DataError(
            f"{statistic.name} is not defined on these {len(found.references)} examples (a constant, or an overflow)",
            where="evaluation data",
            hint="give more rows, or another --metric",
        )
    count = metrics.affordable(statistic, seconds, most=metrics.RESAMPLES, fewest=100)
    if notify is not None and count < metrics.RESAMPLES:
        notify(f"{statistic.name} takes {seconds:.2g} s: its interval is of {count} resamples")
    interval = metrics.interval(
        statistic, predictions, found.references, seed=seed, resamples=count
    )
    return value, interval, statistic.higher_is_better


def doubts_of(found: Predictions, task: Task, config: Any) -> tuple[str, ...]:
    """Return what predictions make doubtful of the labels that they are compared with."""
    if task.predicted == "classes":
        return doubts_of_classes(found.predictions, found.references, config.id2label)
    if task.predicted == "numbers":
        same_scale = task.name == "regression"
        return doubts_of_numbers(found.predictions, found.references, same_scale=same_scale)
    return ()


def first_examples(batch: Batch, count: int) -> Batch:
    """Return a batch of the first examples of ``batch``."""
    examples = torch.arange(min(count, batch.num_examples))
    rows = torch.nonzero(torch.isin(batch.example_of_row, examples)).flatten()
    return replace(
        batch,
        inputs={name: value[rows] for name, value in batch.inputs.items()},
        targets=batch.targets[examples],
        example_of_row=batch.example_of_row[rows],
        indices=examples,
    )
