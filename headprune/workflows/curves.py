"""From scores to curves: every cut planned, run once by masking, and judged against the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import log, sqrt

import torch

from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.config import Constraints, Recipe
from headprune.errors import HeadpruneError
from headprune.evaluation import Predictions, metric_with_interval, predict_masked
from headprune.heads import HeadId
from headprune.passes import RunContext
from headprune.planning import knee, last_within, make_plan
from headprune.planning.constraints import selected_sites, with_keep
from headprune.plans import HeadScores
from headprune.results import Curve, SweepPoint
from headprune.subject import Subject
from headprune.tasks.catalogue import is_logarithmic
from headprune.tasks.metrics import Metric
from headprune.workflows.course import constraints_of

Cut = frozenset[HeadId]


def constraints_at(recipe: Recipe, keep: float) -> Constraints:
    """Return what a recipe says of the plan, for another keep ratio."""
    return with_keep(constraints_of(recipe), keep)


@dataclass(frozen=True)
class _Judged:
    """What was measured of one cut."""

    value: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    loss: float
    loss_standard_error: float


def measure_curves(
    subject: Subject,
    anatomy: Anatomy,
    scores: Mapping[str, HeadScores],
    *,
    keeps: Sequence[float],
    batches: Sequence[Batch],
    context: RunContext,
) -> tuple[tuple[Curve, ...], bool]:
    """Plan every cut, run each that is different once, and judge it.

    Args:
        subject: The model, with its task and recipe.
        anatomy: Where its heads are.
        scores: Each method's.
        keeps: The keep ratios, from 1 down.
        batches: The rows that report.
        context: How to go over them.

    Returns:
        A curve for each method, and whether higher is better.
    """
    plans = {
        method: [_remove(found, anatomy, subject.recipe, keep) for keep in keeps]
        for method, found in scores.items()
    }
    whole = Cut()
    cuts = list(dict.fromkeys([whole, *(Cut(gone) for made in plans.values() for gone in made)]))
    context.notify(
        f"{len(plans)} methods, {len(keeps)} points: {len(cuts)} different cuts to evaluate"
    )
    found = _run(subject, anatomy, cuts, batches=batches, context=context)
    context.notify(f"bootstrap: {len(cuts)} cuts, samples of {len(found[0].references):,} rows")
    judged, better = _judged(found, subject.statistic(), seed=subject.recipe.seed)
    by_cut = dict(zip(cuts, judged, strict=True))
    may_go = len(selected_sites(anatomy, subject.recipe.sites).heads)
    curves = []
    for method, made in plans.items():
        points = [
            _point(keep, gone, by_cut[Cut(gone)], heads=len(anatomy.heads), may_go=may_go)
            for keep, gone in zip(keeps, made, strict=True)
        ]
        worth = [_worth(point.value, subject.metric, higher_is_better=better) for point in points]
        bend = knee([point.share for point in points], worth)
        allowed = subject.recipe.max_drop and subject.recipe.max_drop.of(judged[0].value)
        last = _last_within(points, allowed, higher_is_better=better)
        curves.append(
            Curve(
                method=method,
                scored_on=scores[method].n,
                points=tuple(points),
                knee=None if bend is None else keeps[bend],
                within_drop=None if last is None else keeps[last],
            )
        )
    return tuple(curves), better


def _remove(
    scores: HeadScores, anatomy: Anatomy, recipe: Recipe, keep: float
) -> tuple[HeadId, ...]:
    """Return the heads that go; of the whole model none, whatever multiples a cut would have to keep to."""
    if keep == 1:
        return ()
    return make_plan(scores, anatomy, constraints=constraints_at(recipe, keep)).remove


def _run(
    subject: Subject,
    anatomy: Anatomy,
    cuts: Sequence[Cut],
    *,
    batches: Sequence[Batch],
    context: RunContext,
) -> tuple[Predictions, ...]:
    masks = torch.stack([anatomy.mask(cut) for cut in cuts])
    try:
        return predict_masked(
            subject.model, anatomy, subject.task, batches=batches, masks=masks, context=context
        )
    except (KeyboardInterrupt, HeadpruneError):
        if context.journal is not None and (done := context.journal.count()):
            context.notify(f"batches evaluated: {done}; the same command goes on from there")
        raise


def _judged(
    predictions: Sequence[Predictions], metric: Metric, *, seed: int
) -> tuple[list[_Judged], bool]:
    """Judge every cut, the first being the whole model; say whether higher is better, too."""
    judged: list[_Judged] = []
    value_of = partial(metric_with_interval, metric=metric, seed=seed)
    for one in predictions:
        value, difference = value_of(one), value_of(one, other=predictions[0])
        lost = one.losses
        error = float(lost.std(ddof=1)) / sqrt(len(lost))
        judged.append(
            _Judged(
                value.value,
                value.interval,
                difference.value,
                difference.interval,
                float(lost.mean()),
                error,
            )
        )
    return judged, metric.higher_is_better


def _point(
    keep: float, gone: tuple[HeadId, ...], found: _Judged, *, heads: int, may_go: int
) -> SweepPoint:
    return SweepPoint(
        keep=keep,
        share=1 - len(gone) / may_go,
        heads=heads - len(gone),
        removed=gone,
        value=found.value,
        interval=found.interval,
        difference=found.difference,
        difference_interval=found.difference_interval,
        loss=found.loss,
        loss_standard_error=found.loss_standard_error,
    )


def _worth(value: float, metric: str, *, higher_is_better: bool) -> float:
    """Return the metric such that higher is better, and on the scale that it is drawn on."""
    shown = log(value) if is_logarithmic(metric) else value
    return shown if higher_is_better else -shown


def _last_within(
    points: Sequence[SweepPoint], limit: float | None, *, higher_is_better: bool
) -> int | None:
    """Return the last place down to which no drop's interval goes beyond the limit."""
    if limit is None:
        return None
    ends = [point.difference_interval for point in points]
    return last_within([-low if higher_is_better else high for low, high in ends], limit)
