"""Leave one out, sooner: rows go only to heads of which it is open on which side of the cut they fall.

Heads race (Maron & Moore 1994, "Hoeffding races"): all run on a few examples, those that are surely above or below the cut stop,
the others go on (for the best few of many: Heidrich-Meisner & Igel 2009). What is compared is paired (Moore & Lee 1994,
"blocking"), ``D_hj(n) = d_h(n) - d_j(n)`` with ``d_h(n) = l_n(without h) - l_n``: what an example does to both heads cancels.

The cut is that of the values alone: a plan that takes whole groups, or spares a layer, also takes heads from elsewhere, and finds
their means over fewer rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.special import stdtrit
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.errors import DataError
from headprune.passes import SILENT, RunContext
from headprune.placement import not_finite
from headprune.replay import losses
from headprune.scoring.estimate import Estimate

_FIRST_SHARE = 16
_FIRST_ROWS = 32
_FEWEST_ROWS = 16
# What a mask runs of the block it starts in: the attention is recorded, and the rest is two thirds of a block.
_REST_OF_BLOCK = 0.67
# Relative to the squares that were summed: a variance below this is what rounding leaves of zero.
_ROUNDING = 16 * float(np.finfo(np.float64).eps)

Measure = Callable[[Sequence[int], Sequence[int]], Float64[np.ndarray, "heads rows"]]
"""``measure(heads, rows)``: the differences ``d_h(n)`` of these heads on these rows."""


@dataclass(frozen=True, eq=False)
class RaceResult:
    """How a race ended.

    Args:
        means: Mean difference of each head over the rows it was run on.
        standard_errors: Of these means.
        rows_spent: How many rows each head was run on: so many from the beginning of one random order.
        stays: Which heads surely stay.
        goes: Which heads surely go.
        kept: How many heads stay.
        work: What was run, as a share of full ablation's cost.
        rounds: How many rows had been run when each round ended.
    """

    means: Float64[np.ndarray, " heads"]
    standard_errors: Float64[np.ndarray, " heads"]
    rows_spent: Int64[np.ndarray, " heads"]
    stays: Bool[np.ndarray, " heads"]
    goes: Bool[np.ndarray, " heads"]
    kept: int
    work: float
    rounds: tuple[int, ...]

    @property
    def undecided(self) -> Bool[np.ndarray, " heads"]:
        """Which heads may do either."""
        settled: Bool[np.ndarray, " heads"] = self.stays | self.goes
        return ~settled

    @property
    def values(self) -> Float64[np.ndarray, " heads"]:
        """The means, moved where they contradict what is sure, so that sorting by them takes the right heads.

        Means over different rows can cross where the comparison on common rows is sure. Undecided heads have the most rows and
        keep their means: a head that surely goes is put just below all of them unless it is, one that surely stays just above.
        Where none is undecided, the middle between the highest that goes and the lowest that stays is in their place: no other
        threshold moves a mean less. Nothing moves while means and decision agree.
        """
        values = self.means.copy()
        if self.undecided.any():
            low, high = values[self.undecided].min(), values[self.undecided].max()
        elif self.stays.any() and self.goes.any():
            low = high = (values[self.goes].max() + values[self.stays].min()) / 2
        else:
            return values
        values[self.goes] = np.minimum(values[self.goes], np.nextafter(low, -np.inf))
        values[self.stays] = np.maximum(values[self.stays], np.nextafter(high, np.inf))
        return values

    @property
    def removed(self) -> tuple[int, ...]:
        """The heads that go: those that surely do, and the lowest of the undecided until there are enough."""
        order = np.argsort(self.values, kind="stable")
        return tuple(sorted(order[: len(order) - self.kept].tolist()))

    def estimate(self) -> Estimate:
        """Return it as scoring methods do; ``n`` is the most rows that any head was run on."""
        values, errors = torch.from_numpy(self.values), torch.from_numpy(self.standard_errors)
        return Estimate(values, errors, int(self.rows_spent.max()))


def race_heads(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches_of: Callable[[Sequence[int]], Sequence[Batch]],
    num_rows: int,
    loss: Loss,
    keep: float,
    error_probability: float = 0.05,
    max_work: float = 1 / 3,
    seed: int = 0,
    context: RunContext = SILENT,
) -> RaceResult:
    """Race the heads of a model for the places that a keep ratio leaves.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy; heads are numbered as in ``anatomy.heads``.
        batches_of: Makes batches of the examples at these places of the data; their ``indices`` count within the places given.
        num_rows: How many examples there are.
        loss: Maps outputs and a batch to one loss per example.
        keep: Share of the heads that stay.
        error_probability: Of any decision being wrong; see :func:`decide`.
        max_work: The most that is run, as a share of full ablation's cost.
        seed: Of the order in which examples are taken.
        context: How to go over the data. Round 1 is called ``racing-1``, and so on: in a journal each has results of its own.

    Raises:
        DataError: There is work for fewer than 16 rows.
        ModelError: A loss was infinite or not a number.
    """
    number = count(1)

    def measure(heads: Sequence[int], rows: Sequence[int]) -> Float64[np.ndarray, "heads rows"]:
        masks = torch.ones(1 + len(heads), len(anatomy.heads))
        masks[range(1, len(masks)), list(heads)] = 0
        batches, name = batches_of(rows), f"racing-{next(number)}"
        found = losses(
            model, anatomy, batches=batches, loss=loss, masks=masks, context=context, name=name
        ).double()
        if not bool(found.isfinite().all()):
            what = "the loss of an example is not finite"
            raise not_finite(what, model, where="calibration data")
        return (found[1:] - found[0]).numpy()

    return race(
        measure,
        num_rows=num_rows,
        kept=floor(keep * len(anatomy.heads) + 0.5),
        costs=mask_costs(anatomy),
        error_probability=error_probability,
        max_work=max_work,
        seed=seed,
    )


def mask_costs(anatomy: Anatomy) -> Float64[np.ndarray, " heads"]:
    """Return what a row costs under a mask of each head, in blocks: those after its attention, and the rest of its own."""
    later = np.arange(len(anatomy.sites))[::-1]
    return np.repeat(later + _REST_OF_BLOCK, [len(site.heads) for site in anatomy.sites])


def planned_rounds(num_rows: int) -> tuple[int, ...]:
    """Return how many rows have been run when each round ends: a sixteenth of them (32 at least), then twice as many each time.

    >>> planned_rounds(1024), planned_rounds(130)
    ((64, 128, 256, 512, 1024), (32, 64, 130))
    """
    totals: list[int] = []
    total = max(_FIRST_ROWS, ceil(num_rows / _FIRST_SHARE))
    while 3 * total <= 2 * num_rows:  # no last round of a few rows
        totals.append(total)
        total *= 2
    return (*totals, num_rows)


def race(
    measure: Measure,
    *,
    num_rows: int,
    kept: int,
    costs: Float64[np.ndarray, " heads"],
    error_probability: float = 0.05,
    max_work: float = 1 / 3,
    seed: int = 0,
) -> RaceResult:
    """Run heads on ever more rows, leaving out those that are decided, until all are or the work is used up.

    A round that would exceed ``max_work`` has fewer rows, and is the last.

    Args:
        measure: Runs heads on rows.
        num_rows: How many rows there are.
        kept: How many heads stay.
        costs: What a row costs for each head; see :func:`mask_costs`. Recording the model as it is, once a row, is not counted.
        error_probability: Of any decision being wrong; see :func:`decide`.
        max_work: The most that is run, as a share of the cost of all heads on all rows.
        seed: Of the order in which rows are taken.

    Raises:
        DataError: There is work for fewer than 16 rows.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    seen, spent = np.zeros((len(costs), num_rows)), np.zeros(len(costs), dtype=np.int64)
    stays, goes = np.zeros((2, len(costs)), dtype=np.bool_)
    totals, rounds = planned_rounds(num_rows), [0]
    level = error_probability / max(1, kept * (len(costs) - kept) * len(totals))
    for total in totals:
        start, active = rounds[-1], np.flatnonzero(~(stays | goes))
        left = max_work * num_rows * costs.sum() - costs @ spent
        stop = min(total, start + floor(left / costs[active].sum() + 1e-9))
        if stop - start < _FEWEST_ROWS:
            break
        seen[active, start:stop] = measure(active.tolist(), order[start:stop].tolist())
        spent[active] = stop
        rounds.append(stop)
        places = kept - int(stays.sum())
        stays[active], goes[active] = decide(seen[active, :stop], kept=places, level=level)
        if stop < total or bool((stays | goes).all()):
            break
    if len(rounds) == 1:
        raise DataError(
            f"{num_rows} rows are too few: {max_work:.0%} of the work is not {_FEWEST_ROWS} rows for every head",
            where="calibration data",
            hint="give more rows, allow more work, or use --method ablation",
        )
    runs = [row[:rows] for row, rows in zip(seen, spent, strict=True)]
    means = np.array([run.mean() for run in runs])
    errors = np.array([run.std(ddof=1) / len(run) ** 0.5 for run in runs])
    work = float(costs @ spent / costs.sum()) / num_rows
    return RaceResult(means, errors, spent, stays, goes, kept, work, tuple(rounds[1:]))


def decide(
    differences: Float64[np.ndarray, "heads rows"], *, kept: int, level: float
) -> tuple[Bool[np.ndarray, " heads"], Bool[np.ndarray, " heads"]]:
    """Return which heads surely are among the ``kept`` most important ones, and which surely aren't.

    A head stays when as many are surely worse as have to go, and goes when as many are surely better as may stay. Then it leaves,
    with its place, and the rule is applied to the others until it says no more. So whoever is compared has the same rows; heads
    that left in earlier rounds have fewer, and needn't be looked at again. Head ``h`` is surely better than ``j`` when

        ``mean(D_hj) > t_{n-1}(1 - level) sd(D_hj) / sqrt(n)``

    As long as no head that truly goes seems surely better than one that truly stays, all decisions are right: of the heads left,
    as many as have to go truly go, so for one of them to have as many worse ones, one must truly stay. Hence these
    ``kept (heads - kept)`` comparisons a round share the error probability (Bonferroni), one-sided, since one sign is an error.

    Right means: by the means over everything that the rows are drawn from; full ablation, on more rows of the same draw, is
    contradicted more rarely still. This leans on the t distribution: where nearly all that a head does it does in one of a
    thousand examples, a few hundred promise too much.

    Args:
        differences: ``d_h(n)``.
        kept: How many heads stay.
        level: Error probability of one comparison.
    """
    better = _surely_better(differences, level=level)
    stays, goes = np.zeros((2, len(better)), dtype=np.bool_)
    while True:
        left = ~(stays | goes)
        places = kept - int(stays.sum())
        have_to_go = int(left.sum()) - places
        more = left & (better[:, left].sum(1) >= have_to_go)
        less = left & (better[left].sum(0) >= places)
        if not (more | less).any():
            return stays, goes
        stays, goes = stays | more, goes | less


def _surely_better(
    differences: Float64[np.ndarray, "heads rows"], *, level: float
) -> Bool[np.ndarray, "heads heads"]:
    """Return for all pairs at once whether ``h`` is surely better than ``j``: ``var(D_hj) = C_hh + C_jj - 2 C_hj``."""
    n = differences.shape[1]
    means = differences.mean(1)
    centred = differences - means[:, None]
    products = centred @ centred.T
    squares = products.diagonal()
    spread = squares[:, None] + squares - 2 * products
    rounding = _ROUNDING * np.square(differences).sum(1)
    errors = np.sqrt(np.maximum(spread, rounding[:, None] + rounding) / (n - 1) / n)
    found: Bool[np.ndarray, "heads heads"] = (
        means[:, None] - means > -stdtrit(n - 1, level) * errors
    )
    return found
