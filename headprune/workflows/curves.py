"""Curves of the metric against the share of heads kept: what scores alone make of the model, and what ``prune`` does."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from math import log, sqrt

import torch
from jaxtyping import Float64
from torch import Tensor

from headprune.anatomy.sites import Anatomy
from headprune.artefact import DEFAULT_RECONSTRUCT
from headprune.batch import Batch
from headprune.config import Constraints
from headprune.config.checks import PRUNE, num_steps
from headprune.evaluation import MetricValue, Predictions, predict, predict_masked
from headprune.heads import HeadId
from headprune.passes import RunContext, resumable
from headprune.placement import count_parameters
from headprune.planning.constraints import knee, last_within, selected_sites, with_keep
from headprune.planning.costs import savings
from headprune.planning.plan import make_plan
from headprune.plans import HeadScores
from headprune.results import Curve, SweepPoint
from headprune.surgery.projections import can_fit
from headprune.tasks.catalogue import is_logarithmic
from headprune.tasks.distill import Objective
from headprune.workflows.plan import metric_of
from headprune.workflows.reconstruct import as_pruned
from headprune.workflows.rows import RowParts
from headprune.workflows.score import Scored, compute_scores
from headprune.workflows.session import Session
from headprune.workflows.stepwise import method_between_steps, method_of

Cut = frozenset[HeadId]


@dataclass(frozen=True, eq=False)
class Made:
    """One cut: which heads are removed, how many parameters are left, and what is predicted for the rows that report."""

    removed: tuple[HeadId, ...]
    parameters: int
    predictions: Predictions


@dataclass(frozen=True, eq=False)
class Pruning:
    """Does in memory what ``prune`` does at a keep ratio; afterwards every weight is what it was.

    Args:
        session: The model.
        parts: The rows.
        constraints: What every cut keeps to.
        objective: What scores measure.
        first: The scores of all heads, with which the steps to every point begin.
    """

    session: Session
    parts: RowParts
    constraints: Constraints
    objective: Objective
    first: Scored

    @classmethod
    def of(cls, session: Session, parts: RowParts, constraints: Constraints) -> "Pruning":
        """Score all heads once."""
        score, rows = session.settings.score, parts.calibrate
        objective = session.objective(rows.examples)
        session.progress.notify(f"{PRUNE}, by {method_of(score, session.settings.reconstruct)}:")
        first = compute_scores(session, score, rows, plan=None, is_first=False, objective=objective)
        return cls(session, parts, constraints, objective, first)

    @property
    def steps(self) -> int:
        """In how many steps heads are removed."""
        settings = self.session.settings
        return num_steps(settings.score, with_keep(settings.plan, 1.0))

    @property
    def reconstruct(self) -> str:
        """How what is left is reconstructed: ``none`` also where that can't be done."""
        spec, rows = self.session.settings.reconstruct, self.parts.calibrate.examples
        can = can_fit(self.session.model, self.session.anatomy)
        does = can and method_between_steps(spec, len(rows)) is not None
        return spec.reconstruct or DEFAULT_RECONSTRUCT if does else "none"

    def at(self, keep: float, whole: Predictions, context: RunContext) -> Made:
        """Return what pruning makes of the model, from the journal if it was done before.

        Args:
            keep: The keep ratio.
            whole: What the whole model predicts for the rows that report.
            context: Where results are kept.
        """
        settings, cut = self.session.settings, with_keep(self.constraints, keep)
        sections = (cut, settings.score, settings.data, settings.reconstruct)
        facts = [one.model_dump(mode="json", exclude={"methods"}) for one in sections]
        text = json.dumps([self.parts.calibrate.note, *facts], sort_keys=True, default=str)
        name = f"{PRUNE}-{sha256(text.encode()).hexdigest()[:16]}"
        values = context.kept(name, partial(self._compute, keep, context))
        heads = self.session.anatomy.heads
        mask, parameters, rows = values.split([len(heads), 1, len(values) - len(heads) - 1])
        predictions, losses = rows.view(2, -1).numpy()
        removed = [head for head, is_kept in zip(heads, mask.tolist(), strict=True) if not is_kept]
        found = replace(whole, predictions=predictions, losses=losses)
        return Made(tuple(removed), int(parameters), found)

    def _compute(self, keep: float, context: RunContext) -> Float64[Tensor, " numbers"]:
        """Return the head mask, the number of parameters left, and predictions and losses of the rows that report."""
        session, settings, scores = self.session, self.session.settings, self.first.scores
        model, anatomy, progress = session.model, session.anatomy, session.progress
        progress.notify(f"{PRUNE} at keep {keep:g}:")
        if self.steps > 1:
            scores = compute_scores(
                session,
                settings.score,
                self.parts.calibrate,
                plan=with_keep(self.constraints, keep),
                is_first=False,
                objective=self.objective,
            ).scores
        plan = make_plan(scores, anatomy, constraints=with_keep(self.constraints, keep))
        batches = session.batches(self.parts.report.examples)
        with (
            resumable(context.journal, progress),
            as_pruned(session, plan, self.parts) as parameters,
        ):
            found = predict(model, session.task, batches=batches, track=progress.track)
        mask, count = anatomy.mask(plan.remove).double(), torch.tensor([parameters]).double()
        return torch.cat([mask, count, *map(torch.from_numpy, (found.predictions, found.losses))])


def measure_curves(
    session: Session,
    scores: Mapping[str, HeadScores],
    *,
    keeps: Sequence[float],
    constraints: Constraints,
    batches: Sequence[Batch],
    context: RunContext,
    pruning: Pruning | None = None,
) -> tuple[Curve, ...]:
    """Plan every cut, run each distinct cut once, and compare it with the unpruned model.

    Args:
        session: The model, with its task and settings.
        scores: The scores of each method.
        keeps: The keep ratios, from 1 down.
        constraints: What every cut keeps to.
        batches: The rows that report.
        context: How the work runs, and where results are kept.
        pruning: What ``prune`` does at each point, for the first curve; None leaves it out.
    """
    model, anatomy, notify = session.model, session.anatomy, session.progress.notify
    removals = {
        method: [_removed(one, anatomy, constraints, keep) for keep in keeps]
        for method, one in scores.items()
    }
    cuts = list(
        dict.fromkeys([Cut(), *(Cut(cut) for removed in removals.values() for cut in removed)])
    )
    notify(f"{len(scores)} methods, {len(keeps)} points: {len(cuts)} different cuts to evaluate")
    masks = torch.stack([anatomy.mask(cut) for cut in cuts])
    with resumable(context.journal, session.progress):
        predictions = predict_masked(
            model, anatomy, session.task, batches=batches, masks=masks, context=context
        )
    by_cut, total = dict(zip(cuts, predictions, strict=True)), count_parameters(model)

    def masked(removed: tuple[HeadId, ...]) -> Made:
        saved = savings(model, anatomy, removed=removed, pad=constraints.gqa == "pad")
        return Made(removed, total - saved.parameters, by_cut[Cut(removed)])

    whole = masked(())
    lines = [(scores[method], list(map(masked, removed))) for method, removed in removals.items()]
    if pruning is not None:
        made = [pruning.at(keep, whole.predictions, context) for keep in keeps[1:]]
        lines.insert(0, (pruning.first.scores, [whole, *made]))
    notify(f"bootstrap: samples of {len(predictions[0].references):,} rows")
    point = _point_of(session, whole.predictions, constraints)
    curves = [_curve(session, own, list(map(point, keeps, made))) for own, made in lines]
    if pruning is not None:
        noted = {"steps": pruning.steps, "reconstruct": pruning.reconstruct}
        curves[0] = curves[0].model_copy(update=noted)
    return tuple(curves)


def _removed(
    scores: HeadScores, anatomy: Anatomy, constraints: Constraints, keep: float
) -> tuple[HeadId, ...]:
    """Return the heads that are removed; none at keep 1, even if a cut would have to remove some to keep multiples."""
    if keep == 1:
        return ()
    once = with_keep(constraints, keep).model_copy(update={"rearrange": False})
    return make_plan(scores, anatomy, constraints=once).remove


def _point_of(
    session: Session, whole: Predictions, constraints: Constraints
) -> Callable[[float, Made], SweepPoint]:
    """Return what measures a cut at its keep ratio; the same predictions are resampled once."""
    total = len(session.anatomy.heads)
    may_go = len(selected_sites(session.anatomy, constraints.sites).heads)

    @cache
    def measured(found: Predictions) -> tuple[MetricValue, MetricValue]:
        return metric_of(session, found), metric_of(session, found, other=whole)

    def point(keep: float, made: Made) -> SweepPoint:
        value, difference = measured(made.predictions)
        losses = made.predictions.losses
        return SweepPoint(
            keep=keep,
            share=1 - len(made.removed) / may_go,
            heads=total - len(made.removed),
            removed=made.removed,
            parameters=made.parameters,
            value=value.value,
            interval=value.interval,
            difference=difference.value,
            difference_interval=difference.interval,
            loss=float(losses.mean()),
            loss_standard_error=float(losses.std(ddof=1)) / sqrt(len(losses)),
        )

    return point


def _curve(session: Session, scores: HeadScores, points: Sequence[SweepPoint]) -> Curve:
    """Return a method's points, with the knee and the deepest cut within the allowed drop."""
    higher_is_better, max_drop = session.metric.higher_is_better, session.settings.plan.max_drop
    sign = 1 if higher_is_better else -1
    is_log = is_logarithmic(session.metric_name)
    worth = [sign * (log(point.value) if is_log else point.value) for point in points]
    bend = knee([point.share for point in points], worth)
    last = None
    if max_drop is not None:
        ends = [point.difference_interval for point in points]
        drops = [-low if higher_is_better else high for low, high in ends]
        last = last_within(drops, max_drop.of(points[0].value))
    return Curve(
        method=scores.method,
        scored_on=scores.n,
        points=tuple(points),
        knee=None if bend is None else points[bend].keep,
        within_drop=None if last is None else points[last].keep,
    )
