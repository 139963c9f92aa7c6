"""Reconstruct what is kept, on the rows that chose: some of them fit the weights, the others decide.

A loss need not agree with the metric: of a ranking, say, it counts distances.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.artefact import DEFAULT_RECONSTRUCT, Reconstruct
from headprune.config import ReconstructSpec
from headprune.errors import DataError
from headprune.evaluation import Predictions, predict
from headprune.inspection import inspect
from headprune.masking import gated
from headprune.placement import count_parameters
from headprune.planning.costs import savings
from headprune.plans import PruningPlan
from headprune.replay.losses import losses
from headprune.surgery.projections import can_fit, has_bias, restoring
from headprune.surgery.reconstruct import (
    RECONSTRUCT_METHODS,
    AddedBiases,
    HeldOut,
    Measured,
    add_zero_biases,
    reconstruct,
    remove_biases,
)
from headprune.tasks.distill import Objective
from headprune.tasks.metrics import Metric, bootstrap
from headprune.tasks.task import Task
from headprune.workflows.rows import RowParts
from headprune.workflows.session import Session
from headprune.workflows.stepwise import FEWEST_TO_RECONSTRUCT

Compute: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

_RESAMPLES = 200
# Standard errors by which a metric must be better to outvote the loss, which is the steadier of the two.
_CLEAR = 0.5


@dataclass(frozen=True, eq=False)
class Ready:
    """A model that is reconstructed, its heads still there.

    Args:
        anatomy: Its anatomy.
        outcome: What reconstruction came to; None where it wasn't tried.
        biases: Those that were created, and are kept.
    """

    anatomy: Anatomy
    outcome: Reconstruct | None
    biases: AddedBiases | None


def make_ready(session: Session, plan: PruningPlan, parts: RowParts) -> Ready:
    """Reconstruct in place for the heads that a plan keeps, as the settings say; biases are created where they allow it.

    Args:
        session: The model.
        plan: Which heads will be removed.
        parts: The rows.

    Raises:
        DataError: There are too few rows.
    """
    model, anatomy, notify = session.model, session.anatomy, session.progress.notify
    added = allowed_biases(model, anatomy, plan, session.settings.reconstruct, notify=notify)
    anatomy = inspect(model) if added else anatomy
    outcome = reconstruct_if_asked(session, anatomy, plan, parts)
    if added and take_back_unmoved(model, added, outcome):
        added, anatomy = None, inspect(model)
    return Ready(anatomy, outcome, added)


@contextmanager
def as_pruned(session: Session, plan: PruningPlan, parts: RowParts) -> Iterator[int]:
    """Let the model put out, for the length of a block, what it would if it were pruned: reconstructed, the removed heads masked.

    Args:
        session: The model; every weight is the same again afterwards.
        plan: Which heads are removed.
        parts: The rows.

    Yields:
        The number of parameters that pruning would leave.
    """
    model = session.model
    with restoring(model, session.anatomy):
        ready = make_ready(session, plan, parts)
        removed = savings(model, ready.anatomy, removed=plan.remove, pad=plan.is_padded)
        try:
            with gated(model, ready.anatomy, gates=ready.anatomy.mask(plan.remove)):
                yield count_parameters(model) - removed.parameters
        finally:
            if ready.biases:
                remove_biases(model, ready.biases)


def reconstruct_if_asked(
    session: Session, anatomy: Anatomy, plan: PruningPlan, parts: RowParts
) -> Reconstruct | None:
    """Refit, in place, the output projections for the heads that will be kept, where the settings say so and it helps.

    Raises:
        DataError: There are too few rows.
    """
    settings, notify = session.settings, session.progress.notify
    method, count = settings.reconstruct.reconstruct, len(parts.calibrate.examples)
    if method == "none" or not plan.remove:
        return None
    if count < FEWEST_TO_RECONSTRUCT:
        text = f"{count} calibration rows are too few to fit and to decide"
        if method is None:
            notify(f"not reconstructed: {text}")
            return None
        raise DataError(
            text,
            where=f"`reconstruct={method}`",
            hint=f"give {FEWEST_TO_RECONSTRUCT} or more (`num_samples`), or `reconstruct=none`",
        )
    if not can_fit(session.model, anatomy):
        notify(
            "not reconstructed: the output projections are in memory only while their layers run"
        )
        return None
    notify("reconstructing the output projections")
    unseen = HeldOutRows(
        session.model, anatomy, session.objective(parts.held_out), seed=settings.data.seed
    )
    if settings.score.objective != "distill":
        unseen = replace(unseen, task=session.task, metric=session.metric)
    outcome = reconstruct(
        session.model,
        anatomy,
        batches=session.batches(parts.fit),
        held_out=unseen.judge(),
        remove=plan.remove,
        methods=RECONSTRUCT_METHODS[method or DEFAULT_RECONSTRUCT],
    )
    notify(described(outcome))
    return outcome


def allowed_biases(
    model: PreTrainedModel,
    anatomy: Anatomy,
    plan: PruningPlan,
    spec: ReconstructSpec,
    *,
    notify: Callable[[str], None],
) -> AddedBiases | None:
    """Create biases for reconstruction to move, where the settings allow it and the family knows them."""
    if not spec.allow_bias or spec.reconstruct == "none" or not plan.remove:
        return None
    if plan.budget.get("target") == "parameters":
        notify("no bias is created: it would be parameters beyond the target")
        return None
    added = add_zero_biases(model, anatomy)
    if added is None and not has_bias(model, anatomy):
        kind = type(model).__name__
        notify(f"no bias is created: {kind} knows none in its output projections")
    return added


def take_back_unmoved(
    model: PreTrainedModel, added: AddedBiases, outcome: Reconstruct | None
) -> bool:
    """Remove biases that were created and that reconstruction left at zero; return whether it did."""
    is_moved = outcome is not None and outcome.kept is not None and outcome.kept.method != "scale"
    if not is_moved:
        remove_biases(model, added)
    return not is_moved


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """Rows that nothing was fitted on, which decide between methods of reconstruction.

    Args:
        model: The model.
        anatomy: Its anatomy.
        objective: The rows, and their loss.
        task: What the model predicts; None where the loss alone decides.
        metric: The metric of the predictions; None as for ``task``.
        seed: Of the bootstrap.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    objective: Objective
    task: Task | None = None
    metric: Metric | None = None
    seed: int = 0

    def judge(self) -> HeldOut:
        """Return the function that decides: the least loss wins, unless another candidate's metric is clearly better."""
        count = sum(batch.num_examples for batch in self.objective.batches)
        if self.task is None or self.metric is None:
            return HeldOut(self._look_by_loss, least_loss, "loss", count)
        sign, sampled = (1 if self.metric.higher_is_better else -1), self.metric.or_nan

        def best(looks: Sequence[Measured]) -> int:
            return best_of(looks, lambda one, other: sign * sampled(one, other), seed=self.seed)

        return HeldOut(self._look, best, self.metric.name, count)

    def _look_by_loss(self, mask: Float[Tensor, " heads"]) -> Measured:
        with gated(self.model, self.anatomy, gates=mask):
            values = losses(
                self.model,
                self.anatomy,
                batches=self.objective.batches,
                loss=self.objective.loss,
                masks=torch.ones(1, len(mask)),
            )
        mean = float(values.double().mean())
        return Measured(mean, mean)

    def _look(self, mask: Float[Tensor, " heads"]) -> Measured:
        assert self.task is not None
        assert self.metric is not None
        with gated(self.model, self.anatomy, gates=mask):
            predictions = predict(self.model, self.task, batches=self.objective.batches)
        value = self.metric.compute(predictions.predictions, predictions.references)
        return Measured(value, float(predictions.losses.mean()), predictions)


def best_of(looks: Sequence[Measured], worth: Compute, *, seed: int) -> int:
    """Return the index of the least loss, unless another has a clearly better metric.

    ``worth`` is the metric, negated if lower is better.
    """
    first = least_loss(looks)
    gains = [
        (*_gain(look.predictions, looks[first].predictions, worth, seed=seed), index)
        for index, look in enumerate(looks)
    ]
    clear = [(gain, index) for gain, error, index in gains if gain > _CLEAR * error]
    return max(clear)[1] if clear else first


def least_loss(looks: Sequence[Measured]) -> int:
    """Return the index of the least loss; one that is no number is left out."""
    known = [index for index, look in enumerate(looks) if math.isfinite(look.loss)]
    return min(known, key=lambda index: looks[index].loss, default=0)


def _gain(
    one: Predictions, other: Predictions, worth: Compute, *, seed: int
) -> tuple[float, float]:
    """Return the difference of two metrics and its standard error by the paired bootstrap (Efron 1979)."""

    def gain(rows: Any) -> float:
        values = [worth(side.predictions[rows], side.references[rows]) for side in (one, other)]
        return float(values[0] - values[1])

    whole = gain(slice(None))
    if not math.isfinite(whole):  # a constant has no rank correlation
        return 0.0, 0.0
    gains = bootstrap(gain, len(one.references), seed=seed, resamples=_RESAMPLES)
    return whole, float(np.nanstd(gains, ddof=1))


def described(outcome: Reconstruct) -> str:
    """Return the outcome of reconstruction as a sentence."""
    rows = f"{outcome.held_out:,} calibration rows that it didn't see"
    if not outcome.tried:
        return "not reconstructed: there is no bias to move"
    if outcome.kept is None:
        tried = ", ".join(f"{one.value:.4g}" for one in outcome.tried)
        return (
            f"not reconstructed: {outcome.judged_by} on {rows} is {outcome.without_reconstruction:.4g}, "
            f"and would be {tried}"
        )
    without = f"instead of {outcome.without_reconstruction:.4g}"
    return f"reconstructed ({outcome.kept.method}): {outcome.judged_by} on {rows} is {outcome.kept.value:.4g} {without}"
