"""Choose which heads go: pure, in milliseconds, and only what the architecture can run."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from headprune.anatomy import Anatomy, Site
from headprune.errors import PlanError
from headprune.heads import HeadId, HeadScores, PruningPlan
from headprune.planning.budget import Constraints
from headprune.planning.choice import (
    Choice,
    check_target,
    choose,
    uniform_rows,
    uniform_target,
)
from headprune.planning.cost import Prices
from headprune.planning.names import protected_heads, selected_sites
from headprune.planning.rearrange import rearranged
from headprune.planning.units import Option, options


def check_constraints(
    anatomy: Anatomy, constraints: Constraints, *, prices: Prices | None = None
) -> int:
    """Return how many heads would stay (at most, with a target), before any scores are computed.

    Args:
        anatomy: Where the heads are.
        constraints: What is asked for.
        prices: What a target is counted in; without them it isn't told whether the target is within reach.

    Raises:
        PlanError: The constraints contradict each other or the architecture.
    """
    anatomy = selected_sites(anatomy, constraints.sites)
    total = len(anatomy.heads)
    _check_budget(total, constraints)
    protected = protected_heads(anatomy, constraints.protect)
    menus = [_any_options(site, protected, constraints) for site in anatomy.sites]
    target = constraints.wanted(total)
    least = sum(min(len(option.kept) for option in menu) for menu in menus)
    if target < least:
        enough = f"--keep {least / total + 0.005:.2f}"
        enough = enough if constraints.heads is None else f"--heads {least}"
        raise PlanError(
            f"{constraints.budget} leaves {target} of {total} heads, and at least {least} must stay",
            where=constraints.at_odds,
            hint=f"use {enough} or more, or loosen the other",
        )
    most = sum(max(len(option.kept) for option in menu) for menu in menus)
    if most < target and constraints.heads is None and constraints.target is None:
        raise PlanError(
            f"{constraints.budget} leaves {target} of {total} heads, "
            f"and multiples of {constraints.multiple_of} leave at most {most}",
            where=constraints.at_odds,
            hint=f"use --heads {most}, or another --multiple-of",
        )
    if constraints.uniform:
        _check_uniform(anatomy, menus, constraints)
    if prices is not None:
        check_target(anatomy, menus, constraints=constraints, prices=prices)
    return target


def least_heads(anatomy: Anatomy, constraints: Constraints) -> int:
    """Return how many heads of those that may go must stay, whatever the budget."""
    selected = selected_sites(anatomy, constraints.sites)
    protected = protected_heads(anatomy, constraints.protect)
    menus = [_any_options(site, protected, constraints) for site in selected.sites]
    return sum(min(len(option.kept) for option in menu) for menu in menus)


def make_plan(
    scores: HeadScores,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    prices: Prices | None = None,
) -> PruningPlan:
    """Return the plan that meets the budget and removes the least importance within the constraints.

    Where all heads go in units of one size and heads are counted, units are taken from the cheapest on. Else (units of
    different sizes, as in a model that was pruned before; multiples; targets) the combination of the attentions' options is
    found by dynamic programming, exactly; only where savings have no common divisor are they counted on a grid, rounded down.

    Args:
        scores: The importance of every head.
        anatomy: Where the heads are.
        constraints: The budget, and what else to keep to.
        prices: What a target is counted in.

    Raises:
        PlanError: The scores are of other heads, or :func:`check_constraints` says no.
    """
    if constraints.target is not None and prices is None:
        raise PlanError(
            f"{constraints.target.option} is a budget of the whole model, which is not there",
            where="plan",
            hint="give the model, too: hp.plan(..., model=model)",
        )
    wanted = check_constraints(anatomy, constraints, prices=prices)
    choice = _choose(scores, anatomy, constraints, prices)
    gone = choice.heads
    if constraints.target is None and constraints.keep < 1 and not gone:
        raise PlanError(
            f"{constraints.budget} removes no head: the smallest step is larger than that",
            where="--keep, --gqa, --uniform",
            hint="use a smaller --keep, or other units (--gqa group, --gqa even)",
        )
    protected = protected_heads(anatomy, constraints.protect)
    kept = anatomy.kept_per_site(gone)
    numbers = {"heads_before": len(anatomy.heads), "heads_after": len(anatomy.heads) - len(gone)}
    if constraints.target is None:
        left_out = len(anatomy.heads) - len(selected_sites(anatomy, constraints.sites).heads)
        numbers["heads_wanted"] = left_out + wanted
    return PruningPlan(
        remove=tuple(head for head in anatomy.heads if head in gone),
        kept_per_site={str(site): len(heads) for site, heads in kept.items()},
        budget={**_budget(anatomy, choice, constraints, prices), **numbers},
        constraints={
            "min_heads": constraints.min_heads,
            "protect": list(constraints.protect),
            "uniform": constraints.uniform,
            "gqa": constraints.gqa if any(s.group_size > 1 for s in anatomy.sites) else None,
            **({"sites": list(constraints.sites)} if constraints.sites else {}),
            **({"multiple_of": constraints.multiple_of} if constraints.multiple_of > 1 else {}),
            **({"rearrange": True} if constraints.rearrange else {}),
        },
        reasons=_reasons(scores, choice, protected),
        model=scores.model,
    )


def heads_that_go(
    scores: HeadScores, anatomy: Anatomy, constraints: Constraints
) -> frozenset[HeadId]:
    """Return the heads that a plan from these scores removes; none where the smallest step is too large.

    Raises:
        PlanError: The scores are of other heads.
    """
    return _choose(scores, anatomy, constraints, None).heads


def is_padded(plan: PruningPlan) -> bool:
    """Whether a plan leaves groups uneven and counts on dead weight to even them out."""
    return plan.constraints.get("gqa") == "pad"


def _choose(
    scores: HeadScores, anatomy: Anatomy, constraints: Constraints, prices: Prices | None
) -> Choice:
    values = scores.importance()
    missing = [head for head in anatomy.heads if head not in values]
    if missing or len(values) != len(anatomy.heads):
        raise PlanError(
            f"the scores are of {len(values)} heads and the model has {len(anatomy.heads)}"
            + (f" (no score for {missing[0]})" if missing else ""),
            where="scores",
            hint="score this model: headprune score MODEL",
        )
    protected = protected_heads(anatomy, constraints.protect)
    chosen = choose(
        selected_sites(anatomy, constraints.sites),
        values,
        protected=protected,
        constraints=constraints,
        prices=prices,
    )
    if not constraints.rearrange:
        return chosen
    if scores.products is None or scores.steps is not None:
        raise PlanError(
            f"{scores.method} scores don't say what heads lose together",
            where="--rearrange",
            hint="use --method fisher or fisher:batch, in one step",
        )
    together = rearranged(chosen.heads, anatomy, scores.products, protected=protected)
    return replace(chosen, heads=together, is_plain=False)


def _any_options(
    site: Site, protected: set[HeadId], constraints: Constraints
) -> tuple[Option, ...]:
    """Return a site's options as they are while all heads are equally important."""
    flat = {HeadId(site.id, head): 0.0 for head in site.heads}
    return options(site, flat, protected=protected, constraints=constraints)


def _check_budget(total: int, constraints: Constraints) -> None:
    if not 0 < constraints.keep <= 1:
        raise PlanError(
            f"a share of {constraints.keep} of the heads can't be kept",
            where="--keep",
            hint="give a number above 0 and at most 1, such as --keep 0.7",
        )
    if constraints.heads is not None and not 0 < constraints.heads <= total:
        raise PlanError(
            f"{constraints.heads} heads can't stay of {total}",
            where=f"--heads {constraints.heads}",
            hint=f"give a number from 1 to {total}",
        )


def _check_uniform(
    anatomy: Anatomy, menus: Sequence[tuple[Option, ...]], constraints: Constraints
) -> None:
    if len({len(site.heads) for site in anatomy.sites}) > 1:
        raise PlanError(
            "the layers already have different numbers of heads",
            where="--uniform",
            hint="start from the unpruned model, or leave --uniform out",
        )
    if constraints.heads is None and constraints.target is None:
        for site, menu in zip(anatomy.sites, menus, strict=True):
            fewest = min(len(option.kept) for option in menu)
            target = uniform_target(site, constraints)
            if fewest > target:
                raise PlanError(
                    f"{site.id} must keep {fewest} heads and the same number for all layers would be {target}",
                    where="--uniform",
                    hint="protect fewer heads of a layer, or lower --min-heads, or raise --keep",
                )
        return
    rows = uniform_rows(anatomy, menus)
    least = sum(len(option.kept) for _, option in rows[-1]) if rows else None
    if least is None or (constraints.heads is not None and least > constraints.heads):
        raise PlanError(
            f"{constraints.budget} can't be met with the same number of heads in every layer"
            + (f": at least {least} must stay" if least else ""),
            where="--uniform",
            hint="protect fewer heads of a layer, or lower --min-heads, or leave --uniform out",
        )


def _budget(
    anatomy: Anatomy, choice: Choice, constraints: Constraints, prices: Prices | None
) -> dict[str, Any]:
    """Return what was asked, and what it came to."""
    target = constraints.target
    if target is None or prices is None:
        heads = constraints.heads
        return {"keep": constraints.keep} if heads is None else {"heads": heads}
    kept = anatomy.kept_per_site(choice.heads)
    after = prices.whole - sum(prices.saved(site, kept[site.id]) for site in anatomy.sites)
    return {
        "target": target.resource,
        "asked": target.said,
        "limit": target.limit(prices.whole),
        "before": prices.whole,
        "after": after,
        "share": after / prices.whole,
        **({"counted_in_steps_of": choice.grid} if choice.grid is not None else {}),
        **prices.note,
    }


def _reasons(scores: HeadScores, choice: Choice, protected: Collection[HeadId]) -> dict[str, str]:
    """Say why, for every head that stays although its score alone would have it go, and the other way round."""
    gone = choice.heads
    by_score = set(scores.ranked()[: len(gone)])
    kept = "kept: its layer or group needs it"
    if not choice.is_plain:
        kept += ", or others meet the budget at less cost"
    reasons: dict[str, str] = {}
    for head in scores.heads:
        if head in by_score and head not in gone:
            reasons[str(head)] = "kept: protected" if head in protected else kept
        elif head in gone and head not in by_score:
            reasons[str(head)] = "removed: with its group, or to make room for one that is kept"
    return reasons
