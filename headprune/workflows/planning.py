"""From a recipe to a plan: scores, and the choice within the budget."""

from collections.abc import Callable

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.config import Constraints
from headprune.planning import (
    CostModel,
    check_constraints,
    cost_model,
    make_plan,
    resources_of,
    savings,
    target_of,
)
from headprune.plans import HeadScores, PruningPlan
from headprune.subject import Progress, Rows, Subject
from headprune.surgery import named_heads
from headprune.workflows.course import constraints_of
from headprune.workflows.scores import Scored, find_scores


def plan_for(
    subject: Subject,
    anatomy: Anatomy,
    rows: Rows,
    *,
    progress: Progress,
    show: Callable[[HeadScores, PruningPlan], None],
    keep_parts: bool,
) -> tuple[Scored, PruningPlan]:
    """Return scores and the plan that is made of them; what can't be met is refused before anything is scored.

    Args:
        subject: The model and the recipe.
        anatomy: Where its heads are.
        rows: The calibration rows.
        progress: How to talk meanwhile.
        show: Shows scores and plan.
        keep_parts: Whether parts of the work are kept, for a run that is stopped.

    Raises:
        PlanError: The budget is out of reach, or constraints contradict each other.
    """
    constraints = with_named_heads(
        subject.model, anatomy, constraints_of(subject.recipe), progress=progress
    )
    if constraints.target_latency is not None:
        progress.notify("timing the model with fewer and fewer heads")
    costs = cost_model(
        subject.model,
        anatomy,
        constraints=constraints,
        batches=lambda: subject.batches(rows.examples),
    )
    check_constraints(anatomy, constraints, costs=costs)
    found = find_scores(subject, anatomy, rows, progress=progress, keep_parts=keep_parts)
    chosen = choose(
        subject.model,
        anatomy,
        found.scores,
        constraints=constraints,
        costs=costs,
        progress=progress,
    )
    show(found.scores, chosen)
    return found, chosen


def with_named_heads(
    model: PreTrainedModel, anatomy: Anatomy, constraints: Constraints, *, progress: Progress
) -> Constraints:
    """Return the constraints; heads that the model's settings name by index are protected, and that is said."""
    named = [str(head) for head in named_heads(model, anatomy)]
    if named:
        progress.notify(
            f"{len(named)} heads stay, as generation_config.json names them: {', '.join(named)}"
        )
    return constraints.model_copy(update={"protect": (*constraints.protect, *named)})


def choose(
    model: PreTrainedModel,
    anatomy: Anatomy,
    scores: HeadScores,
    *,
    constraints: Constraints,
    costs: CostModel | None,
    progress: Progress,
) -> PruningPlan:
    """Make the plan, with what it saves; say what a target came to, and where heads differ from what was asked."""
    plan = make_plan(scores, anatomy, constraints=constraints, costs=costs)
    chosen = with_savings(model, anatomy, plan)
    target, left = target_of(constraints), chosen.budget["heads_after"]
    wanted = chosen.budget.get("heads_wanted", left)
    if target is not None:
        before, after = (target.with_unit(chosen.budget[name]) for name in ("before", "after"))
        expected = "expected" if target.resource == "latency" else "left"
        progress.notify(
            f"{after} {expected} of {before} ({chosen.budget['share']:.1%}), with {left} heads"
        )
    if wanted != left:
        progress.notify(f"{left} heads stay instead of {wanted}: heads go in whole units here")
    return chosen


def with_savings(model: PreTrainedModel, anatomy: Anatomy, plan: PruningPlan) -> PruningPlan:
    """Return a plan that says what the model takes, and what of that goes."""
    saved = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded).as_dict()
    told = {"saves": saved, "whole": resources_of(model, anatomy).as_dict()}
    return plan.model_copy(update={"budget": {**plan.budget, **told}})
