"""The cheapest lawful choice within a budget, over all attentions: dynamic programming over one option of each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf, isclose
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from headprune.anatomy.sites import Anatomy
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.planning.constraints import Amount, conflicting_fields
from headprune.planning.problem import Problem, check_target, savings_of, uniform_number
from headprune.planning.units import Menu, removable, uniform_menu, units_of

Products: TypeAlias = Mapping[str, Sequence[Sequence[float]]]
"""Mean products of the derivatives of two heads, by attention: rows and columns are its heads."""

# How many totals are distinguished where gains have no large common divisor.
_CELLS = 1 << 16


@dataclass(frozen=True, slots=True)
class Choice:
    """What is removed.

    Args:
        heads: The heads.
        is_plain: Whether it is the cheapest units that the layers can spare: heads are counted, in units of one size.
        grid: The step in which savings were counted; None where they were counted exactly.
    """

    heads: frozenset[HeadId]
    is_plain: bool = False
    grid: Amount | None = None


def choose(problem: Problem, values: Mapping[HeadId, float]) -> Choice:
    """Return the lawful choice that meets the budget and loses the least importance.

    It is exact, by dynamic programming over the options of the attentions; only where savings have no common divisor are they
    counted on a grid, rounded down.

    Raises:
        PlanError: The target is out of reach.
    """
    menus = problem.menus(values)
    menus = [uniform_menu(menus)] if problem.constraints.uniform else menus
    if problem.target is None or problem.costs is None:
        return _for_heads(problem, menus, values)
    # Scores decide which options a menu has: what flat scores could reach may be out of reach now.
    check_target(problem.target, problem.costs, menus, conflicting_fields(problem.constraints))
    # Counted above the least important head where scores are negative: else heads that a target doesn't ask for would be removed
    # only because a method, or a normalisation, counts from above zero.
    lowest = min(0.0, *values.values()) if values else 0.0
    costs = [
        [option.cost - lowest * len(option.removed) for option in menu.options] for menu in menus
    ]
    gains = [savings_of(menu, problem.costs) for menu in menus]
    least = problem.costs.whole - problem.target.limit(problem.costs.whole)
    picked, grid = cheapest_for(gains, costs, least=least)
    return Choice(_removed(menus, picked), grid=grid)


def _removed(menus: Sequence[Menu], picked: Sequence[int]) -> frozenset[HeadId]:
    options = (menu.options[index] for menu, index in zip(menus, picked, strict=True))
    return frozenset(head for option in options for head in option.removed)


def _for_heads(problem: Problem, menus: Sequence[Menu], values: Mapping[HeadId, float]) -> Choice:
    """Return the best choice of as many heads as the budget removes, or of the next number that can be removed."""
    constraints = problem.constraints
    expected = len(problem.anatomy.heads) - problem.heads_to_keep
    if constraints.uniform and constraints.keep is not None:
        expected = sum(
            len(site.heads) - uniform_number(site, constraints) for site in problem.anatomy.sites
        )
    combinations = combine(
        [[len(option.removed) for option in menu.options] for menu in menus],
        [[option.cost for option in menu.options] for menu in menus],
    )
    reached = np.flatnonzero(np.isfinite(combinations.costs))
    fewer, more = reached[reached <= expected], reached[reached >= expected]
    if constraints.heads is not None:
        if not len(more):  # which heads fill a group up depends on the scores
            raise PlanError(
                f"no choice of heads keeps {constraints.heads} or fewer",
                where=conflicting_fields(constraints),
                hint="give a larger number, or loosen the other",
            )
        total = int(more[0])
    else:
        total = int(fewer[-1] if len(fewer) else reached[0])
    every = {
        site: units_of(site, values, protected=problem.protected, constraints=constraints)
        for site in problem.anatomy.sites
    }
    units = [u for site, own in every.items() for u in removable(own, site, constraints)]
    one_size = len({len(unit.heads) for own in every.values() for unit in own}) <= 1
    is_plain = constraints.uniform or (one_size and constraints.multiple_of == 1)
    # Of equally good choices the one that the cheapest units make.
    greedy: list[HeadId] = []
    for unit in sorted(units, key=lambda unit: (unit.cost, unit.heads)):
        if len(greedy) + len(unit.heads) <= total:
            greedy.extend(unit.heads)
    cost, best = sum(values[head] for head in greedy), float(combinations.costs[total])
    as_cheap = cost < best or isclose(cost, best, rel_tol=1e-9, abs_tol=1e-12)
    if len(greedy) == total and as_cheap and _is_on(menus, frozenset(greedy)):
        return Choice(frozenset(greedy), is_plain)
    return Choice(_removed(menus, combinations.options(total)), is_plain)


def _is_on(menus: Sequence[Menu], heads: frozenset[HeadId]) -> bool:
    """Whether heads are one option of every menu."""
    for menu in menus:
        sites = {site.id for site in menu.sites}
        own = {head for head in heads if head.site in sites}
        if own not in [set(option.removed) for option in menu.options]:
            return False
    return True


@dataclass(frozen=True, eq=False)
class Combinations:
    """The cheapest combination for every total gain.

    Args:
        costs: For each total [totals], what the cheapest combination costs; infinite where there is none.
        picks: For each attention and each total up to it [attentions][totals], which option that takes.
        gains: What each option gains.
    """

    costs: NDArray[np.float64]
    picks: tuple[NDArray[np.int32], ...]
    gains: tuple[tuple[int, ...], ...]

    def options(self, total: int) -> list[int]:
        """Return which option of each attention the cheapest combination for ``total`` takes."""
        options: list[int] = []
        for pick, gains in zip(reversed(self.picks), reversed(self.gains), strict=True):
            options.append(int(pick[total]))
            total -= gains[options[-1]]
        return options[::-1]


def combine(gains: Sequence[Sequence[int]], costs: Sequence[Sequence[float]]) -> Combinations:
    """Return the cheapest combination of one option per attention for every total gain.

    ``gains`` and ``costs`` hold, for each attention, a number of 0 or more for each of its options.

    Exact: ``best[i][t] = min_o best[i - 1][t - gain_o] + cost_o``. Of equally cheap ones it takes the earlier option.
    """
    best = np.zeros(1)
    picks: list[NDArray[np.int32]] = []
    for gained, cost in zip(gains, costs, strict=True):
        extended = np.full(len(best) + max(gained), inf)
        pick = np.zeros(len(extended), dtype=np.int32)
        for option, gain in enumerate(gained):
            reached = slice(gain, gain + len(best))
            with_option = best + cost[option]
            better = with_option < extended[reached]
            extended[reached][better] = with_option[better]
            pick[reached][better] = option
        best = extended
        picks.append(pick)
    return Combinations(best, tuple(picks), tuple(map(tuple, gains)))


def cheapest_for(
    gains: Sequence[Sequence[Amount]], costs: Sequence[Sequence[float]], *, least: Amount
) -> tuple[list[int], Amount | None]:
    """Return the options that gain ``least`` or more and cost the least together.

    ``gains`` and ``costs`` are as for :func:`combine`; ``least`` is within reach.

    Whole numbers are counted in units of their common divisor, which is exact. Where that makes too many totals, and for
    fractions, gains are rounded down to a grid: the options then still gain what they must, and may gain a little more
    than is needed (at most one step of the grid per attention).

    Returns:
        Which option of each attention, and the step of the grid; None where the choice is exact.
    """
    if len(gains) == 1:  # nothing to combine
        enough = [option for option, gain in enumerate(gains[0]) if gain >= least]
        return [min(enough, key=costs[0].__getitem__)], None
    most = sum(max(gained) for gained in gains)
    whole = all(isinstance(gain, int) for gained in gains for gain in gained)
    unit: Amount = gcd(*(int(gain) for gained in gains for gain in gained)) if whole else 0
    is_exact = whole and most <= unit * _CELLS
    if not is_exact:
        unit = ceil(most / _CELLS) if whole else most / _CELLS
    if not unit:  # nothing gains anything
        return [min(range(len(cost)), key=cost.__getitem__) for cost in costs], None
    counted = [[int(gain // unit) for gain in gained] for gained in gains]
    combinations = combine(counted, costs)
    sufficient = combinations.costs[max(0, ceil(least / unit)) :]
    if not len(sufficient) or not np.isfinite(sufficient.min()):
        # Within reach, but lost in rounding.
        return [max(range(len(g)), key=g.__getitem__) for g in gains], unit
    total = len(combinations.costs) - len(sufficient) + int(sufficient.argmin())
    return combinations.options(total), None if is_exact else unit


def rearranged(
    heads: Collection[HeadId],
    anatomy: Anatomy,
    products: Products,
    *,
    protected: Collection[HeadId],
) -> frozenset[HeadId]:
    """Return as many heads of every attention as ``heads``, which sorting chose, has of it: the ones whose joint loss is least.

    By second order, what a set ``Z`` of heads adds to the loss is half of ``sum_{i, j in Z} F_ij``, and scores see no more than
    the diagonal. From the ``k`` cheapest heads on, every other one is let in, and the one whose leaving makes the sum smallest
    leaves. Attentions whose heads share keys and values stay as they are.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.2.
    """
    together: set[HeadId] = set()
    for site in anatomy.sites:
        own = [HeadId(site.id, head) for head in site.heads]
        indices = [index for index, head in enumerate(own) if head in heads]
        if site.group_size == 1 and indices:
            free = [index for index, head in enumerate(own) if head not in protected]
            indices = _least_together(products[str(site.id)], free, len(indices))
        together.update(own[index] for index in indices)
    return frozenset(together)


def _least_together(
    fisher: Sequence[Sequence[float]], free: Sequence[int], count: int
) -> list[int]:
    order = sorted(free, key=lambda index: (fisher[index][index], index))
    members = order[:count]
    for candidate in order[count:]:
        members.append(candidate)
        # The sum without i is the sum less i's row and column, F_ii being in both.
        saved = [2 * sum(fisher[i][j] for j in members) - fisher[i][i] for i in members]
        members.pop(saved.index(max(saved)))
    return members
