"""Heads go in steps, and those that are left are scored anew: what one head does depends on which others are there."""

from collections.abc import Callable, Collection
from dataclasses import replace

from headprune.anatomy import Anatomy
from headprune.heads import HeadId, HeadScores, Steps
from headprune.planning.budget import Constraints
from headprune.planning.names import selected_sites
from headprune.planning.plan import check_constraints, heads_that_go

Rescore = Callable[[Collection[HeadId]], HeadScores]
"""``rescore(gone)``: scores of all heads while some are silent; what it says of these doesn't matter."""


def score_in_steps(
    anatomy: Anatomy, *, rescore: Rescore, constraints: Constraints, steps: int
) -> HeadScores:
    """Score all heads, remove a share of those that are to go, score the rest again, and so on.

    Each step takes as many heads as the others, within the constraints; one that would take none (a unit is larger) is left
    out. In the result every head has the score that it had last, and the step in which it went: a plan for the same cut, made
    from these scores, removes the same heads.

    Args:
        anatomy: Where the heads are.
        rescore: Scores them without some.
        constraints: Which cut the steps lead to: a keep ratio or a number of heads.
        steps: How many there are; 1 is scoring once.

    Raises:
        PlanError: The constraints contradict each other or the architecture.
    """
    check_constraints(anatomy, constraints)
    total = len(selected_sites(anatomy, constraints.sites).heads)
    share = constraints.keep if constraints.heads is None else constraints.heads / total
    went: dict[HeadId, int] = {}
    found = latest = rescore(())
    scored_without = 0
    for step in range(1, steps + 1):
        if len(went) > scored_without:
            scored_without = len(went)
            latest = _of_those_left(found, rescore(tuple(went)), went)
        part = replace(constraints, heads=None, keep=1 - (1 - share) * step / steps)
        found = _noted(latest, anatomy, went, constraints=constraints, steps=steps)
        for head in heads_that_go(found, anatomy, constraints if step == steps else part):
            went.setdefault(head, step)
    return _noted(latest, anatomy, went, constraints=constraints, steps=steps)


def _of_those_left(before: HeadScores, now: HeadScores, went: Collection[HeadId]) -> HeadScores:
    """Return the new scores; heads that went keep what they had."""
    places = [
        (before, before.heads.index(head)) if head in went else (now, place)
        for place, head in enumerate(now.heads)
    ]
    errors = None
    if before.standard_errors is not None and now.standard_errors is not None:
        both = {id(before): before.standard_errors, id(now): now.standard_errors}
        errors = tuple(both[id(scores)][place] for scores, place in places)
    values = tuple(scores.values[place] for scores, place in places)
    return now.model_copy(update={"values": values, "standard_errors": errors})


def _noted(
    scores: HeadScores,
    anatomy: Anatomy,
    went: dict[HeadId, int],
    *,
    constraints: Constraints,
    steps: int,
) -> HeadScores:
    note = Steps(
        count=steps,
        keep=constraints.keep,
        heads=constraints.heads,
        constraints=constraints.as_dict(),
        went=tuple(went.get(head, 0) for head in anatomy.heads),
    )
    return scores.model_copy(update={"steps": note})
