"""Which heads are removed, and why: pure, in milliseconds, and only what the architecture can run."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, TypeAlias

from headprune.analysis.catalogue import ROLES
from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy, Site
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.planning.constraints import as_dict
from headprune.planning.costs import CostModel
from headprune.planning.problem import Problem, check_constraints
from headprune.planning.solve import Choice, choose, rearranged
from headprune.plans import HeadScores, PlannedSite, PruningPlan, Steps

Rescore: TypeAlias = Callable[[Collection[HeadId]], HeadScores]
"""``rescore(removed)``: scores of all heads while some are masked; what it gives to these doesn't matter."""


def make_plan(
    scores: HeadScores,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    costs: CostModel | None = None,
) -> PruningPlan:
    """Return the plan that meets the budget and removes the least importance within the constraints.

    Raises:
        PlanError: The scores are of other heads, or :func:`check_constraints` says no.
    """
    problem = check_constraints(anatomy, constraints, costs=costs)
    if problem.target is not None and costs is None:
        raise PlanError(
            "the target is a budget of the whole model, which is not there",
            where=f"`target_{problem.target.resource}`",
            hint="give the model, too: hp.plan(..., model=model)",
        )
    choice = _choose(scores, anatomy, problem)
    removed = choice.heads
    if constraints.keep is not None and constraints.keep < 1 and not removed:
        raise PlanError(
            f"keep={constraints.keep} removes no head: the smallest unit that can be removed is larger than that",
            where="`keep`, `gqa`, `uniform`",
            hint="use a smaller `keep`, or other units (`gqa=even`)",
        )
    kept = anatomy.kept_per_site(removed)
    numbers = {
        "heads_before": len(anatomy.heads),
        "heads_after": len(anatomy.heads) - len(removed),
    }
    if problem.target is None:
        untouched = len(anatomy.heads) - len(problem.anatomy.heads)
        numbers["heads_wanted"] = untouched + problem.heads_to_keep
    noted = as_dict(constraints)
    if all(site.group_size == 1 for site in anatomy.sites):
        noted["gqa"] = None
    return PruningPlan(
        remove=tuple(head for head in anatomy.heads if head in removed),
        kept_per_site={str(site): len(heads) for site, heads in kept.items()},
        sites={str(site.id): _planned(site, constraints) for site in anatomy.sites},
        budget={**_budget(anatomy, choice, problem), **numbers},
        constraints=noted,
        reasons=_reasons(scores, choice, problem.protected),
        model=scores.model,
    )


def with_roles(plan: PruningPlan, roles: Roles | None) -> PruningPlan:
    """Return the plan with what becomes of the heads of every role, and which role a head is kept for."""
    if roles is None:
        return plan
    reasons = dict(plan.reasons)
    for name in plan.constraints.get("protect_role", ()):
        for head in map(str, roles.heads_with(name)):
            if head in reasons:
                reasons[head] = f"kept: {ROLES[name].noun}"
    return plan.model_copy(update={"reasons": reasons, "roles": roles.fates(plan.remove)})


def score_in_steps(
    anatomy: Anatomy, *, rescore: Rescore, constraints: Constraints, steps: int
) -> HeadScores:
    """Score all heads, remove a share of the heads to remove, score the remaining heads again, and so on.

    What one head does depends on which others are there. Each step removes as many heads as the others, within the
    constraints; one that would remove none (a unit is larger) is left out. In the result every head has the score that it had
    last, and the step in which it was removed: a plan for the same cut, made from these scores, removes the same heads.

    Raises:
        PlanError: The constraints contradict each other or the architecture.
    """
    problem = check_constraints(anatomy, constraints)
    total = len(problem.anatomy.heads)
    share = problem.heads_to_keep / total if constraints.heads else constraints.keep or 1.0
    removed_in: dict[HeadId, int] = {}
    scores = latest = rescore(())
    scored_without = 0
    for step in range(1, steps + 1):
        if len(removed_in) > scored_without:
            scored_without = len(removed_in)
            latest = _of_those_kept(scores, rescore(tuple(removed_in)), removed_in)
        scores = _with_steps(latest, removed_in, constraints, steps)
        part = {"heads": None, "keep": 1 - (1 - share) * step / steps}
        towards = constraints if step == steps else constraints.model_copy(update=part)
        choice = _choose(scores, anatomy, replace(problem, constraints=towards))
        for head in choice.heads:
            removed_in.setdefault(head, step)
    return _with_steps(latest, removed_in, constraints, steps)


def _of_those_kept(before: HeadScores, now: HeadScores, removed: Collection[HeadId]) -> HeadScores:
    """Return the new scores; heads that were removed keep what they had."""
    sources = [
        (before, before.heads.index(head)) if head in removed else (now, index)
        for index, head in enumerate(now.heads)
    ]
    errors = None
    if before.standard_errors is not None and now.standard_errors is not None:
        both = {id(before): before.standard_errors, id(now): now.standard_errors}
        errors = tuple(both[id(scores)][index] for scores, index in sources)
    values = tuple(scores.values[index] for scores, index in sources)
    return now.model_copy(update={"values": values, "standard_errors": errors})


def _with_steps(
    scores: HeadScores, removed_in: dict[HeadId, int], constraints: Constraints, steps: int
) -> HeadScores:
    note = Steps(
        count=steps,
        keep=1.0 if constraints.keep is None else constraints.keep,
        heads=constraints.heads,
        constraints=as_dict(constraints),
        went=tuple(removed_in.get(head, 0) for head in scores.heads),
    )
    return scores.model_copy(update={"steps": note})


def _choose(scores: HeadScores, anatomy: Anatomy, problem: Problem) -> Choice:
    values = scores.importance()
    missing = [head for head in anatomy.heads if head not in values]
    if missing or len(values) != len(anatomy.heads):
        raise PlanError(
            f"the scores are of {len(values)} heads and the model has {len(anatomy.heads)}"
            + (f" (no score for {missing[0]})" if missing else ""),
            where="scores",
            hint="score this model: headprune score MODEL",
        )
    choice = choose(problem, values)
    if not problem.constraints.rearrange:
        return choice
    if scores.products is None or scores.steps is not None:
        raise PlanError(
            f"{scores.method} scores don't say what heads lose together",
            where="`rearrange`",
            hint="use the method fisher or fisher:batch, in one step",
        )
    together = rearranged(
        choice.heads, problem.anatomy, scores.products, protected=problem.protected
    )
    return replace(choice, heads=together, is_plain=False)


def _planned(site: Site, constraints: Constraints) -> PlannedSite:
    """Return what of an attention decides which further changes of a plan are lawful."""
    return PlannedSite(
        heads=site.heads,
        group_size=1 if site.num_key_value_heads == 1 else site.group_size,
        is_even=site.execution == "native" and constraints.gqa != "pad",
        min_heads=min(len(site.heads), max(constraints.min_heads, site.min_heads)),
    )


def _budget(anatomy: Anatomy, choice: Choice, problem: Problem) -> dict[str, Any]:
    """Return the budget that was asked for, and what the plan achieves."""
    target, costs, constraints = problem.target, problem.costs, problem.constraints
    if target is None or costs is None:
        keep = 1.0 if constraints.keep is None else constraints.keep
        return {"keep": keep} if constraints.heads is None else {"heads": constraints.heads}
    after = costs.left(anatomy, choice.heads)
    return {
        "target": target.resource,
        "asked": target.text,
        "limit": target.limit(costs.whole),
        "before": costs.whole,
        "after": after,
        "share": after / costs.whole,
        **({"counted_in_steps_of": choice.grid} if choice.grid is not None else {}),
        **costs.note,
    }


def _reasons(scores: HeadScores, choice: Choice, protected: Collection[HeadId]) -> dict[str, str]:
    """Say why, for every head that is kept although its score alone would remove it, and the other way round."""
    by_score = set(scores.ranked()[: len(choice.heads)])
    kept = "kept: its layer or group needs it"
    if not choice.is_plain:
        kept += ", or others meet the budget at less cost"
    reasons: dict[str, str] = {}
    for head in scores.heads:
        if head in by_score and head not in choice.heads:
            reasons[str(head)] = "kept: protected" if head in protected else kept
        elif head in choice.heads and head not in by_score:
            reasons[str(head)] = "removed: with its group, or to make room for one that is kept"
    return reasons
