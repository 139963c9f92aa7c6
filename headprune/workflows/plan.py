"""From scores to a plan: within a budget, or as far as the metric's interval stays within a tolerance."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from transformers import PreTrainedModel

from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.evaluation import MetricValue, Predictions, metric_with_interval, predict
from headprune.passes import Progress
from headprune.planning.constraints import conflicting_fields, target_of, with_keep
from headprune.planning.costs import CostModel, cost_model, resources_of, savings
from headprune.planning.plan import make_plan, with_roles
from headprune.planning.problem import check_constraints
from headprune.plans import HeadScores, PruningPlan
from headprune.tasks.rows import noted_rows
from headprune.workflows.reconstruct import as_pruned
from headprune.workflows.roles import protecting
from headprune.workflows.rows import RowParts
from headprune.workflows.score import Scored, find_scores
from headprune.workflows.session import Session

Show = Callable[[HeadScores, PruningPlan], None]
"""Shows scores and plan."""

_STEP = 0.05
_DEEPEST = 0.1


def plan_for(
    session: Session, parts: RowParts, *, show: Show, keep_parts: bool, roles: Roles | None = None
) -> tuple[Scored, PruningPlan]:
    """Return scores and the plan made from them; constraints that can't be met are refused before scoring.

    With ``keep_parts``, finished batches are kept on disk, to resume an interrupted run. ``roles`` say which heads have a role to
    protect, and are noted in the plan.

    Raises:
        PlanError: The budget is out of reach, or constraints contradict each other.
    """
    constraints = protecting(session, roles)
    make = _plan_for_budget if constraints.max_drop is None else _plan_within
    scored, plan = make(session, parts, constraints, keep_parts=keep_parts)
    plan = with_roles(plan, roles)
    show(scored.scores, plan)
    return scored, plan


def _plan_for_budget(
    session: Session, parts: RowParts, plan: Constraints, *, keep_parts: bool
) -> tuple[Scored, PruningPlan]:
    model, anatomy, progress = session.model, session.anatomy, session.progress
    if plan.target_latency is not None:
        progress.notify("timing the model with fewer and fewer heads")
    costs = cost_model(
        model,
        anatomy,
        constraints=plan,
        batches=lambda: session.batches(parts.calibrate.examples),
    )
    check_constraints(anatomy, plan, costs=costs)
    scored = find_scores(session, parts.calibrate, plan=plan, keep_parts=keep_parts)
    return scored, choose(
        model, anatomy, scored.scores, constraints=plan, costs=costs, progress=progress
    )


def choose(
    model: PreTrainedModel,
    anatomy: Anatomy,
    scores: HeadScores,
    *,
    constraints: Constraints,
    costs: CostModel | None,
    progress: Progress,
) -> PruningPlan:
    """Make the plan, with its savings; report what a target comes to, and a number of heads that differs from the one asked for.

    Raises:
        PlanError: The budget is out of reach.
    """
    plan = with_savings(
        model, anatomy, make_plan(scores, anatomy, constraints=constraints, costs=costs)
    )
    kept = plan.budget["heads_after"]
    expected = plan.budget.get("heads_wanted", kept)
    if (target := target_of(constraints)) is not None:
        before, after = (target.with_unit(plan.budget[name]) for name in ("before", "after"))
        word = "expected" if target.resource == "latency" else "left"
        progress.notify(
            f"{after} {word} of {before} ({plan.budget['share']:.1%}), with {kept} heads"
        )
    if expected != kept:
        progress.notify(
            f"{kept} heads are kept instead of {expected}: heads are removed in whole units here"
        )
    return plan


def with_savings(model: PreTrainedModel, anatomy: Anatomy, plan: PruningPlan) -> PruningPlan:
    """Return the plan with the model's resources and how much of them it saves."""
    saved = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded).as_dict()
    sizes = {"saves": saved, "whole": resources_of(model, anatomy).as_dict()}
    return plan.model_copy(update={"budget": {**plan.budget, **sizes}})


@dataclass(frozen=True)
class Look:
    """One cut that was measured.

    Args:
        keep: The share of heads that it keeps.
        drop: How much worse the metric is, in its own units.
        worst: Upper end of the 95 % interval of the drop.
    """

    keep: float
    drop: float
    worst: float


def _plan_within(
    session: Session, parts: RowParts, constraints: Constraints, *, keep_parts: bool
) -> tuple[Scored, PruningPlan]:
    """Score for the deepest cut that can be made, then choose the deepest one within the tolerance; see :func:`_deepest`."""
    keeps = lawful_keeps(session.anatomy, constraints)
    deepest = with_keep(constraints, keeps[-1])
    scored = find_scores(session, parts.calibrate, plan=deepest, keep_parts=keep_parts)

    @cache
    def plan_at(keep: float) -> PruningPlan:
        return make_plan(scored.scores, session.anatomy, constraints=with_keep(constraints, keep))

    plan = _deepest(session, parts, keeps, plan_at)
    rows = noted_rows(parts.decide.examples, earlier=scored.scores.rows)
    return replace(scored, scores=scored.scores.model_copy(update={"rows": rows})), plan


def _deepest(
    session: Session,
    parts: RowParts,
    keeps: Sequence[float],
    plan_at: Callable[[float], PruningPlan],
) -> PruningPlan:
    """Return the plan for the fewest heads with which the metric stays within the tolerance.

    Bisect keep ratios to the smallest whose paired interval is within tolerance. Every cut is reconstructed as in ``prune``.
    Each of up to five looks has its own 95 % interval, not corrected for the others. The model is left as it was.
    """
    max_drop, notify = session.settings.plan.max_drop, session.progress.notify
    if max_drop is None:
        raise PlanError("no drop is allowed", where="`max_drop`", hint="`max_drop=1%`")
    examples = parts.decide.examples
    batches = session.batches(examples)
    whole = predict(session.model, session.task, batches=batches, track=session.progress.track)
    base = metric_of(session, whole)
    allowed = max_drop.of(base.value)

    def look(keep: float) -> Look:
        with as_pruned(session, plan_at(keep), parts):
            smaller = predict(session.model, session.task, batches=batches)
        difference = metric_of(session, smaller, other=whole)
        low, high = difference.interval
        better = base.higher_is_better
        drop, worst = (-difference.value, -low) if better else (difference.value, high)
        notify(
            f"keep {keep:g}: {session.metric_name} {base.value:.4f} -> {base.value + difference.value:.4f}, "
            f"a drop of {worst + 0:.4g} at most ({allowed:.4g} allowed; n = {len(examples):,})"
        )
        return Look(keep, drop, worst)

    looks = bisect(keeps, look, allowed=allowed)
    within = [one for one in looks if one.worst <= allowed]
    if not within:
        raise PlanError(
            f"no cut stays within a drop of {max_drop}: at keep {looks[-1].keep:g} it may be {looks[-1].worst:.4g}",
            where=f"`max_drop={max_drop}`",
            hint="allow more, or give more rows (`data`): the interval narrows",
        )
    plan = plan_at(min(one.keep for one in within))
    notes: dict[str, Any] = {
        "max_drop": str(max_drop),
        "allowed": allowed,
        "decided_on": len(examples),
        "looks": [asdict(one) for one in looks],
    }
    noted = plan.model_copy(update={"budget": {**plan.budget, **notes}})
    return with_savings(session.model, session.anatomy, noted)


def metric_of(
    session: Session, predictions: Predictions, *, other: Predictions | None = None
) -> MetricValue:
    """Return the session's metric with its interval, or the paired difference to other predictions."""
    return metric_with_interval(
        predictions, session.metric, seed=session.settings.data.seed, other=other
    )


def lawful_keeps(anatomy: Anatomy, constraints: Constraints) -> tuple[float, ...]:
    """Return the feasible keep ratios, descending by 5 % from 95 %.

    Raises:
        PlanError: No keep ratio is feasible.
    """
    problem = check_constraints(anatomy, constraints)
    least = round(problem.fewest_to_keep / len(problem.anatomy.heads) + 0.005, 2)
    steps = [round(1 - place * _STEP, 2) for place in range(1, round(1 / _STEP))]
    points = sorted({*(keep for keep in steps if keep > least), least}, reverse=True)
    lawful = [
        keep
        for keep in points
        if keep >= _DEEPEST and refusal_at(anatomy, constraints, keep) is None
    ]
    if not lawful:
        raise PlanError(
            "no head can be removed",
            where=conflicting_fields(constraints),
            hint="protect fewer, or lower `min_heads`",
        )
    return tuple(lawful)


def refusal_at(anatomy: Anatomy, constraints: Constraints, keep: float) -> PlanError | None:
    """Return why a keep ratio can't be cut, whatever the scores; None where it can."""
    values = (0.0,) * len(anatomy.heads)
    flat = HeadScores(method="none", heads=anatomy.heads, values=values, n=0, seed=0)
    asked = with_keep(constraints, keep).model_copy(update={"rearrange": False})
    try:
        make_plan(flat, anatomy, constraints=asked)
    except PlanError as error:
        return error
    return None


def bisect(points: Sequence[float], look: Callable[[float], Look], *, allowed: float) -> list[Look]:
    """Bisect descending keep ratios, assuming shallower cuts also pass; return the cuts that were measured."""
    looks: list[Look] = []
    low, high = -1, len(points)  # the last known to be within, the first known not to be
    while high - low > 1:
        middle = (low + high) // 2
        looks.append(look(points[middle]))
        if looks[-1].worst <= allowed:
            low = middle
        else:
            high = middle
    return looks
