"""The cheapest lawful choice within a budget, over all attentions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isclose, lcm

import numpy as np

from headprune.anatomy import Anatomy, Site
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.planning.budget import Amount, Constraints
from headprune.planning.cost import Prices
from headprune.planning.knapsack import cheapest_for, combine
from headprune.planning.units import Option, Unit, candidates, is_even, options, units

Menus = Sequence[tuple[Option, ...]]
"""For each attention its lawful options, those that take the fewest heads first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What goes.

    Args:
        heads: The heads.
        is_plain: Whether the cheapest units that the layers can spare go: heads are counted, and go in units of one size.
        grid: The step in which savings were counted; None where they were counted exactly.
    """

    heads: frozenset[HeadId]
    is_plain: bool = False
    grid: Amount | None = None


def choose(
    anatomy: Anatomy,
    values: dict[HeadId, float],
    *,
    protected: Collection[HeadId],
    constraints: Constraints,
    prices: Prices | None,
) -> Choice:
    """Return the lawful choice that meets a budget and loses the least importance.

    Args:
        anatomy: The attentions that may lose heads.
        values: The importance of each head.
        protected: Heads that stay.
        constraints: The budget, which must be within reach, and what else to keep to.
        prices: What a target is counted in.
    """
    if constraints.uniform or prices is not None:
        menus = _menus(anatomy, values, protected, constraints)
        if prices is not None:
            check_target(anatomy, menus, constraints=constraints, prices=prices)
        if constraints.uniform:
            return _uniformly(anatomy, menus, values, constraints, prices)
        if prices is not None:
            return _for_target(anatomy, menus, values, constraints, prices)
    cheapest = [
        unit
        for site in anatomy.sites
        for unit in units(site, values, protected=protected, constraints=constraints)
    ]
    sizes = {
        len(unit.heads)
        for site in anatomy.sites
        for unit in candidates(site, values, protected=protected, constraints=constraints)
    }
    going = len(anatomy.heads) - constraints.wanted(len(anatomy.heads))
    if len(sizes) <= 1 and constraints.multiple_of == 1:
        size = max(sizes, default=1)
        going = going if constraints.heads is None else -(-going // size) * size
        return Choice(frozenset(_take(cheapest, going)), is_plain=True)
    menus = _menus(anatomy, values, protected, constraints)
    return _for_heads(menus, cheapest, values, going=going, at_most=constraints.heads is not None)


def _menus(
    anatomy: Anatomy,
    values: dict[HeadId, float],
    protected: Collection[HeadId],
    constraints: Constraints,
) -> Menus:
    return [
        options(site, values, protected=protected, constraints=constraints)
        for site in anatomy.sites
    ]


def check_target(
    anatomy: Anatomy, menus: Menus, *, constraints: Constraints, prices: Prices
) -> None:
    """Refuse a target that is out of reach.

    Raises:
        PlanError: It is; the error names the smallest that is not.
    """
    target = constraints.target
    if target is None:
        return
    saved = _most_saved(anatomy, menus, constraints, prices)
    if saved >= _needed(prices, constraints):
        return
    least = prices.whole - saved
    share = ceil(least / prices.whole * 1000) / 1000
    raise PlanError(
        f"{target.option} allows {target.told(target.limit(prices.whole))} of {target.told(prices.whole)}, "
        f"and the smallest that pruning heads can reach is {target.told(least)} ({share:.1%})",
        where=constraints.at_odds,
        hint=f"use {target.option.split()[0]} {share:g} or more, or loosen the other",
    )


def _needed(prices: Prices, constraints: Constraints) -> Amount:
    """Return how much must be saved to meet a target."""
    return prices.whole - constraints.target.limit(prices.whole) if constraints.target else 0


def _most_saved(anatomy: Anatomy, menus: Menus, constraints: Constraints, prices: Prices) -> Amount:
    if constraints.uniform:
        return max(_saved(row, prices) for row in uniform_rows(anatomy, menus))
    return sum(
        max(prices.saved(site, option.kept) for option in menu)
        for site, menu in zip(anatomy.sites, menus, strict=True)
    )


def _saved(row: Iterable[tuple[Site, Option]], prices: Prices) -> Amount:
    return sum(prices.saved(site, option.kept) for site, option in row)


def uniform_rows(anatomy: Anatomy, menus: Menus) -> list[list[tuple[Site, Option]]]:
    """Return, for every number of heads that all attentions can keep, its cheapest options; the largest number first."""
    by_count: list[dict[int, Option]] = []
    for menu in menus:
        found: dict[int, Option] = {}
        for option in sorted(menu, key=lambda option: option.cost):
            found.setdefault(len(option.kept), option)
        by_count.append(found)
    shared = set.intersection(*map(set, by_count))
    return [
        [(site, found[count]) for site, found in zip(anatomy.sites, by_count, strict=True)]
        for count in sorted(shared, reverse=True)
    ]


def uniform_target(site: Site, constraints: Constraints) -> int:
    """Return how many heads stay in each layer: the keep ratio, rounded to whole units, and at least one unit."""
    groups = site.groups(site.heads)
    size, multiple = 1, constraints.multiple_of
    if site.group_size == 1 or constraints.gqa == "pad":
        size = multiple
    elif is_even(site, constraints):
        size = lcm(len(groups), multiple)
    else:
        size = len(site.heads) // len(groups) * multiple
    found = max(1, floor(constraints.keep * len(site.heads) / size + 0.5))
    return found * size


def _uniformly(
    anatomy: Anatomy,
    menus: Menus,
    values: Mapping[HeadId, float],
    constraints: Constraints,
    prices: Prices | None,
) -> Choice:
    """Return the best choice that leaves all attentions the same number of heads."""
    if prices is not None:
        needed = _needed(prices, constraints)
        rows = [row for row in uniform_rows(anatomy, menus) if _saved(row, prices) >= needed]
        best = min(rows, key=lambda row: sum(_costs([option for _, option in row], values)))
        return Choice(_taken(option for _, option in best))
    if constraints.heads is not None:
        rows = [
            row
            for row in uniform_rows(anatomy, menus)
            if sum(len(option.kept) for _, option in row) <= constraints.heads
        ]
        return Choice(_taken(option for _, option in rows[0]), is_plain=True)
    chosen: list[Option] = []
    for site, menu in zip(anatomy.sites, menus, strict=True):
        target = uniform_target(site, constraints)
        enough = [option for option in menu if len(option.kept) >= target] or menu[:1]
        chosen.append(min(enough, key=lambda option: (len(option.kept), option.cost)))
    return Choice(_taken(chosen), is_plain=True)


def _for_target(
    anatomy: Anatomy,
    menus: Menus,
    values: Mapping[HeadId, float],
    constraints: Constraints,
    prices: Prices,
) -> Choice:
    least = _needed(prices, constraints)
    gains = [
        [prices.saved(site, option.kept) for option in menu]
        for site, menu in zip(anatomy.sites, menus, strict=True)
    ]
    picked, grid = cheapest_for(gains, [_costs(menu, values) for menu in menus], least=least)
    chosen = [menu[place] for menu, place in zip(menus, picked, strict=True)]
    return Choice(_taken(chosen), grid=grid)


def _costs(menu: Iterable[Option], values: Mapping[HeadId, float]) -> list[float]:
    """Return what options cost where their numbers of heads differ: above the least important head, if scores are negative.

    Else heads that a target doesn't ask for would go only because a method, or a normalisation, counts from above zero.
    """
    lowest = min(0.0, *values.values()) if values else 0.0
    return [option.cost - lowest * len(option.heads) for option in menu]


def _for_heads(
    menus: Menus,
    cheapest: Iterable[Unit],
    values: Mapping[HeadId, float],
    *,
    going: int,
    at_most: bool,
) -> Choice:
    """Return the best choice of ``going`` heads, or of the next number that can go: a larger one with ``at_most``."""
    gains = [[len(option.heads) for option in menu] for menu in menus]
    found = combine(gains, [[option.cost for option in menu] for menu in menus])
    reached = np.flatnonzero(np.isfinite(found.costs))
    beyond = reached[reached >= going]
    within = reached[reached <= going]
    total = int(beyond[0] if at_most else within[-1] if len(within) else reached[0])
    picked = found.options(total)
    exact = _taken([menu[place] for menu, place in zip(menus, picked, strict=True)])
    # Of equally good choices the one that the cheapest units make.
    greedy = frozenset(_take(cheapest, total))
    lawful = [{frozenset(option.heads) for option in menu} for menu in menus]
    sites = [{head.site for option in menu for head in option.heads} for menu in menus]
    if len(greedy) == total and all(
        frozenset(head for head in greedy if head.site in site) in known
        for site, known in zip(sites, lawful, strict=True)
    ):
        cost = sum(values[head] for head in greedy)
        if (
            isclose(cost, found.costs[total], rel_tol=1e-9, abs_tol=1e-12)
            or cost < found.costs[total]
        ):
            return Choice(greedy)
    return Choice(exact)


def _take(cheapest: Iterable[Unit], budget: int) -> list[HeadId]:
    taken: list[HeadId] = []
    for unit in sorted(cheapest, key=lambda unit: (unit.cost, unit.heads)):
        if len(taken) + len(unit.heads) <= budget:
            taken.extend(unit.heads)
    return taken


def _taken(chosen: Iterable[Option]) -> frozenset[HeadId]:
    return frozenset(head for option in chosen for head in option.heads)
