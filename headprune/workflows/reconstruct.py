"""Reconstruct what is kept, on the rows that chose: some of them fit the weights, the others decide.

A loss need not agree with the metric: of a ranking, say, it counts distances.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.artefact import Reconstruct
from headprune.config import Settings
from headprune.errors import DataError
from headprune.evaluation import Predictions, predict_masked
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.plans import PruningPlan
from headprune.replay import losses
from headprune.surgery import (
    RECONSTRUCT_METHODS,
    AddedBiases,
    HeldOut,
    Measured,
    add_zero_biases,
    reconstruct,
    remove_biases,
)
from headprune.surgery.fit import can_fit, has_bias
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


def reconstruct_if_asked(
    session: Session, anatomy: Anatomy, plan: PruningPlan, parts: RowParts
) -> Reconstruct | None:
    """Refit, in place, the output projections for the heads that will be kept, where the settings say so and it helps.

    Raises:
        DataError: There are too few rows.
    """
    method, notify = session.settings.reconstruct.reconstruct, session.progress.notify
    count = len(parts.calibrate.examples)
    if method == "none" or not plan.remove:
        return None
    if not can_reconstruct(parts):
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
    outcome = reconstruct_parts(session, anatomy, plan.remove, parts)
    notify(described(outcome))
    return outcome


def allowed_biases(
    model: PreTrainedModel,
    anatomy: Anatomy,
    plan: PruningPlan,
    settings: Settings,
    *,
    notify: Callable[[str], None],
) -> AddedBiases | None:
    """Create biases for reconstruction to move, where the settings allow it and the family knows them."""
    spec, constraints = settings.reconstruct, settings.plan
    tolerant = constraints.max_drop is not None
    if not spec.allow_bias or spec.reconstruct == "none" or tolerant or not plan.remove:
        return None
    if constraints.target_parameters is not None:
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


def can_reconstruct(parts: RowParts) -> bool:
    """Whether there are enough calibration rows to fit on some and decide on the others."""
    return len(parts.calibrate.examples) >= FEWEST_TO_RECONSTRUCT


def reconstruct_parts(
    session: Session, anatomy: Anatomy, remove: Collection[HeadId], parts: RowParts
) -> Reconstruct:
    """Reconstruct for the heads that are kept, in place; held-out rows decide whether that helped."""
    objective = session.objective(parts.held_out)
    by_loss = session.settings.score.objective == "distill"
    judge = HeldOutRows(
        session.model,
        anatomy,
        objective,
        None if by_loss else session.task,
        None if by_loss else session.metric,
        session.settings.data.seed,
    )
    return reconstruct(
        session.model,
        anatomy,
        batches=session.batches(parts.fit),
        held_out=judge.judge(),
        remove=remove,
        methods=RECONSTRUCT_METHODS[session.settings.reconstruct.reconstruct or "best"],
    )


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
        (predictions,) = predict_masked(
            self.model, self.anatomy, self.task, batches=self.objective.batches, masks=mask[None]
        )
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
