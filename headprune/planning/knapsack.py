"""One option per attention, the cheapest combination for every total gain: dynamic programming over plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf

import numpy as np
from numpy.typing import NDArray

from headprune.planning.budget import Amount

# Totals that are told apart where gains have no large common divisor.
_CELLS = 1 << 16


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
        found: list[int] = []
        for pick, gains in zip(reversed(self.picks), reversed(self.gains), strict=True):
            found.append(int(pick[total]))
            total -= gains[found[-1]]
        return found[::-1]


def combine(gains: Sequence[Sequence[int]], costs: Sequence[Sequence[float]]) -> Combinations:
    """Return the cheapest combination of one option per attention for every total gain.

    Exact: ``best[i][t] = min_o best[i - 1][t - gain_o] + cost_o``. Of equally cheap ones it takes the earlier option.

    Args:
        gains: For each attention, what each of its options gains; 0 or more.
        costs: The same of costs.
    """
    best = np.zeros(1)
    picks: list[NDArray[np.int32]] = []
    for gained, cost in zip(gains, costs, strict=True):
        found = np.full(len(best) + max(gained), inf)
        pick = np.zeros(len(found), dtype=np.int32)
        for option, gain in enumerate(gained):
            reached = slice(gain, gain + len(best))
            with_it = best + cost[option]
            better = with_it < found[reached]
            found[reached][better] = with_it[better]
            pick[reached][better] = option
        best = found
        picks.append(pick)
    return Combinations(best, tuple(picks), tuple(map(tuple, gains)))


def cheapest_for(
    gains: Sequence[Sequence[Amount]], costs: Sequence[Sequence[float]], *, least: Amount
) -> tuple[list[int], Amount | None]:
    """Return the options that gain ``least`` or more and cost the least together.

    Whole numbers are counted in units of their common divisor, which is exact. Where that makes too many totals, and for
    fractions, gains are rounded down to a grid: the options then still gain what they must, and may gain a little more
    than is needed (at most one step of the grid per attention).

    Args:
        gains: For each attention, what each of its options gains; ``least`` is within reach.
        costs: The same of costs; 0 or more.
        least: What must be gained.

    Returns:
        Which option of each attention, and the step of the grid; None where the choice is exact.
    """
    most = sum(max(gained) for gained in gains)
    whole = all(isinstance(gain, int) for gained in gains for gain in gained)
    unit: Amount = gcd(*(int(gain) for gained in gains for gain in gained)) if whole else 0
    is_exact = whole and most <= unit * _CELLS
    if not is_exact:
        unit = ceil(most / _CELLS) if whole else most / _CELLS
    if not unit:  # nothing gains anything
        return [min(range(len(cost)), key=cost.__getitem__) for cost in costs], None
    counted = [[int(gain // unit) for gain in gained] for gained in gains]
    found = combine(counted, costs)
    enough = found.costs[max(0, ceil(least / unit)) :]
    if not len(enough) or not np.isfinite(enough.min()):
        # Within reach, but lost in rounding.
        return [max(range(len(g)), key=g.__getitem__) for g in gains], unit
    total = len(found.costs) - len(enough) + int(enough.argmin())
    return found.options(total), None if is_exact else unit
