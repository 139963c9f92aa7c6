"""Reconstruct what is left, on the rows that chose: some of them fit the weights, the others decide.

A loss need not agree with the metric: of a ranking, say, it counts distances.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headprune.anatomy import Anatomy
from headprune.errors import DataError
from headprune.evaluation import Predictions, predict_masked
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.plans import HeadScores, PruningPlan
from headprune.replay import losses
from headprune.subject import Progress, Rows, Subject
from headprune.surgery import RECONSTRUCT_METHODS, HeldOut, Measured, Reconstruct, reconstruct
from headprune.surgery.fit import can_fit
from headprune.tasks.metrics import bootstrap
from headprune.tasks.rows import Example, noted_rows, set_apart
from headprune.workflows.course import FEWEST_TO_RECONSTRUCT

Compute: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

_RESAMPLES = 200
# Standard errors by which a metric must be better to outvote the loss, which is the steadier of the two.
_CLEAR = 0.5
_HELD_OUT = 0.25


def reconstruct_if_asked(
    subject: Subject, anatomy: Anatomy, plan: PruningPlan, rows: Rows, *, progress: Progress
) -> Reconstruct | None:
    """Refit the output projections for the heads that will stay, where the recipe says so.

    Args:
        subject: The model, its heads still there; changed in place where reconstruction helps.
        anatomy: Its anatomy.
        plan: Which heads will go.
        rows: The calibration rows; the last quarter decides.
        progress: How to talk meanwhile.

    Raises:
        DataError: There are too few rows.
    """
    asked, examples = subject.recipe.reconstruct, rows.examples
    if asked == "none" or not plan.remove:
        return None
    if not may_reconstruct(rows) and asked is None:
        progress.notify(
            f"not reconstructed: {len(examples)} calibration rows are too few to fit and to decide"
        )
        return None
    if not may_reconstruct(rows):
        raise DataError(
            f"{len(examples)} calibration rows are too few to reconstruct with: some fit, the others decide",
            where=f"--reconstruct {asked}",
            hint=f"give {FEWEST_TO_RECONSTRUCT} or more (--num-samples), or --reconstruct none",
        )
    if not can_fit(subject.model, anatomy):
        progress.notify(
            "not reconstructed: the output projections are in memory only while their layers run"
        )
        return None
    progress.notify("reconstruction the output projections")
    found = reconstructed_for(subject, anatomy, plan.remove, rows)
    progress.notify(_told(found))
    return found


def may_reconstruct(rows: Rows) -> bool:
    """Whether there are enough rows for some to fit and others to decide."""
    return len(rows.examples) >= FEWEST_TO_RECONSTRUCT


def reconstructed_for(
    subject: Subject, anatomy: Anatomy, remove: Collection[HeadId], rows: Rows
) -> Reconstruct:
    """Reconstruct for the heads that stay, in place; the last quarter of ``rows`` decides how."""
    fitting, deciding = set_apart(
        rows.examples, len(rows.examples) - max(2, round(_HELD_OUT * len(rows.examples)))
    )
    return reconstruct(
        subject.model,
        anatomy,
        batches=subject.batches(fitting),
        held_out=_held_out(subject, anatomy, deciding),
        remove=remove,
        methods=RECONSTRUCT_METHODS[subject.recipe.reconstruct or "best"],
    )


def _held_out(subject: Subject, anatomy: Anatomy, examples: Sequence[Example]) -> HeldOut:
    """Return what decides: the loss, unless the task's metric clearly says otherwise."""
    model, recipe = subject.model, subject.recipe
    objective = subject.objective(examples)
    if recipe.objective == "distill":

        def distance(mask: Float[Tensor, " heads"]) -> Measured:
            with gated(model, anatomy, gates=mask):
                found = losses(
                    model,
                    anatomy,
                    batches=objective.batches,
                    loss=objective.loss,
                    masks=torch.ones(1, len(mask)),
                )
            mean = float(found.double().mean())
            return Measured(mean, mean)

        return HeldOut(distance, _least_loss, "loss", len(examples))
    statistic = subject.statistic()
    compute, sampled = statistic.compute, statistic.or_nan

    def look(mask: Float[Tensor, " heads"]) -> Measured:
        (found,) = predict_masked(
            model, anatomy, subject.task, batches=objective.batches, masks=mask[None]
        )
        value = compute(found.predictions, found.references)
        return Measured(value, float(found.losses.mean()), found)

    sign = 1 if statistic.higher_is_better else -1

    def best(looks: Sequence[Measured]) -> int:
        return best_of(looks, lambda one, other: sign * sampled(one, other), seed=recipe.seed)

    return HeldOut(look, best, statistic.name, len(examples))


def best_of(looks: Sequence[Measured], worth: Compute, *, seed: int) -> int:
    """Return the place of the least loss, or of the greatest worth where that is clearly greater than there.

    Args:
        looks: What was seen, each with predictions of the same examples.
        worth: The metric, higher being better.
        seed: Of the bootstrap.
    """
    first = _least_loss(looks)
    gains = [
        (*_gain(look.predictions, looks[first].predictions, worth, seed=seed), place)
        for place, look in enumerate(looks)
    ]
    clear = [(gain, place) for gain, error, place in gains if gain > _CLEAR * error]
    return max(clear)[1] if clear else first


def _least_loss(looks: Sequence[Measured]) -> int:
    """Return the place of the least loss; what is no number is none."""
    known = [place for place, look in enumerate(looks) if math.isfinite(look.loss)]
    return min(known, key=lambda place: looks[place].loss, default=0)


def _gain(
    found: Predictions, other: Predictions, worth: Compute, *, seed: int
) -> tuple[float, float]:
    """Return how much more one is worth, and the standard error of that by the paired bootstrap (Efron 1979)."""

    def gain(rows: Any) -> float:
        one, two = (worth(side.predictions[rows], side.references[rows]) for side in (found, other))
        return float(one - two)

    whole = gain(slice(None))
    if not math.isfinite(whole):  # a constant has no rank correlation
        return 0.0, 0.0
    gains = bootstrap(gain, len(found.references), seed=seed, resamples=_RESAMPLES)
    return whole, float(np.nanstd(gains, ddof=1))


def _told(found: Reconstruct) -> str:
    on = f"{found.held_out:,} calibration rows that it didn't see"
    if not found.tried:
        return "not reconstructed: there is no bias to move"
    if found.kept is None:
        tried = ", ".join(f"{one.value:.4g}" for one in found.tried)
        return f"not reconstructed: {found.judged_by} on {on} is {found.without_reconstruction:.4g}, and would be {tried}"
    without = f"instead of {found.without_reconstruction:.4g}"
    return f"reconstructed ({found.kept.method}): {found.judged_by} on {on} is {found.kept.value:.4g} {without}"


def rows_noted(scores: HeadScores, rows: Rows) -> HeadScores:
    """Return the scores, saying of rows that reconstructed, too, that they must not report."""
    return scores.model_copy(update={"rows": noted_rows(rows.examples, earlier=scores.rows)})
