"""Swap search: heads that go for heads that stay, near the cut, where the losses of both sets say so.

A score is of one head, and a cut is of many: of two heads that can replace each other one must stay, which no score sees. So
pairs around the cut are tried as what they are, other masks: half of the rows proposes the pair that gains the most, and the
other half must agree, example by example, before it is swapped. Then the halves change places. A few rows of the half that
proposes say first which pairs are worth trying on all of it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from scipy.stats import t
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.heads import HeadId, HeadMask
from headprune.passes import SILENT, RunContext
from headprune.planning.budget import Constraints
from headprune.planning.cost import Prices
from headprune.planning.names import protected_heads, selected_sites
from headprune.planning.units import Unit, candidates, is_lawful
from headprune.replay import losses

GainsOf: TypeAlias = Callable[..., Tensor]
"""``gains_of(pairs, batches=, name=)``: by how much the loss of every example falls when a pair changes places."""

# Units on each side of the cut that are paired; and pairs that a few rows leave over.
_WIDTH = 8
# One-sided: by Student's t the paired gain must be above 0.
_SURE = 0.95


class Pair(NamedTuple):
    """Units of one size that change places.

    Args:
        goes: Heads that would have stayed.
        stays: Heads that would have gone.
    """

    goes: tuple[HeadId, ...]
    stays: tuple[HeadId, ...]

    def applied(self, gone: Collection[HeadId]) -> frozenset[HeadId]:
        """Return which heads go when the pair has changed places."""
        return frozenset(gone) - set(self.stays) | set(self.goes)


@dataclass(frozen=True)
class Swap:
    """A pair that changed places, and the evidence: swapped for its gain, so that the gain is on the large side.

    Args:
        pair: The heads.
        gain: By how much the mean loss fell, on the rows that didn't propose it.
        standard_error: Of that, over pairs of losses of the same example.
        n: Examples that agreed.
    """

    pair: Pair
    gain: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class Swapped:
    """What a search came to.

    Args:
        gone: The heads that go.
        swaps: What was swapped, in order.
    """

    gone: frozenset[HeadId]
    swaps: tuple[Swap, ...]


class Half(NamedTuple):
    """One of two sets of rows that have no example in common.

    Args:
        few: Some of the rows, of every kind, on which all pairs are tried.
        batches: All of them, on which the best of these are.
        name: What going over them is called: under the same masks there are losses of several sets of rows.
    """

    few: Sequence[Batch]
    batches: Sequence[Batch]
    name: str


def pairs_near_the_cut(
    gone: Collection[HeadId],
    anatomy: Anatomy,
    values: Mapping[HeadId, float],
    *,
    constraints: Constraints,
    prices: Prices | None = None,
    width: int = _WIDTH,
) -> tuple[Pair, ...]:
    """Return what may change places of the ``width`` cheapest units that stay and the ``width`` dearest that go.

    Whatever of it is swapped, as many heads stay and every constraint holds.

    Args:
        gone: The heads that go.
        anatomy: Where the heads are.
        values: Their importance.
        constraints: What the plan keeps to.
        prices: What a target is counted in: no swap changes what is left of it.
        width: How far around the cut.
    """
    selected = selected_sites(anatomy, constraints.sites)
    protected = protected_heads(anatomy, constraints.protect)
    units = [
        unit
        for site in selected.sites
        for unit in candidates(site, dict(values), protected=protected, constraints=constraints)
    ]
    units.sort(key=lambda unit: (unit.cost, unit.heads))
    staying = [unit for unit in units if not set(unit.heads) & set(gone)][:width]
    going = [unit for unit in reversed(units) if set(unit.heads) <= set(gone)][:width]
    return tuple(
        Pair(goes.heads, stays.heads)
        for goes in staying
        for stays in going
        if _may_change_places(goes, stays, gone, anatomy, constraints, prices)
    )


def _may_change_places(
    goes: Unit,
    stays: Unit,
    gone: Collection[HeadId],
    anatomy: Anatomy,
    constraints: Constraints,
    prices: Prices | None,
) -> bool:
    if len(goes.heads) != len(stays.heads):
        return False
    same_site = goes.site == stays.site
    if not same_site and (constraints.uniform or constraints.target is not None):
        return False
    before = anatomy.kept_per_site(gone)
    after = anatomy.kept_per_site(Pair(goes.heads, stays.heads).applied(gone))
    changed = [site for site in anatomy.sites if site.id in (goes.site, stays.site)]
    if prices is not None and any(
        prices.saved(site, after[site.id]) != prices.saved(site, before[site.id])
        for site in changed
    ):
        return False
    return all(is_lawful(site, after[site.id], constraints) for site in changed)


def swap(
    model: PreTrainedModel,
    anatomy: Anatomy,
    gone: Collection[HeadId],
    *,
    halves: tuple[Half, Half],
    loss: Loss,
    values: Mapping[HeadId, float],
    constraints: Constraints,
    prices: Prices | None = None,
    most: int,
    context: RunContext = SILENT,
) -> Swapped:
    """Swap up to ``most`` times, until neither half proposes what the other agrees to.

    Args:
        model: The model, all its heads still there; it is left as it was.
        anatomy: Its anatomy.
        gone: The heads that go.
        halves: What proposes and what must agree, in turns.
        loss: One loss per example.
        values: The importance of the heads, which says what is near the cut.
        constraints: What the plan keeps to.
        prices: What a target is counted in.
        most: So many swaps at most.
        context: How to go over the data.
    """
    found = Swapped(frozenset(gone), ())
    first, second = halves
    in_vain = 0
    while in_vain < 2 and len(found.swaps) < most:
        pairs = pairs_near_the_cut(
            found.gone, anatomy, values, constraints=constraints, prices=prices
        )
        if not pairs:
            break
        gains_of = partial(_gains, model, anatomy, found.gone, loss=loss, context=context)
        pair = _proposed(pairs, gains_of, first)
        swapped = None if pair is None else _confirmed(pair, gains_of, second)
        if swapped is not None:
            gone = swapped.pair.applied(found.gone)
            found = replace(found, gone=gone, swaps=(*found.swaps, swapped))
        in_vain = 0 if swapped else in_vain + 1
        first, second = second, first
    return found


def _proposed(pairs: Sequence[Pair], gains_of: GainsOf, half: Half) -> Pair | None:
    """Return the pair that gains the most, of those that gain the most on a few rows; None where none gains."""
    on_few = gains_of(pairs, batches=half.few, name=f"{half.name}, a few")
    best = [pairs[place] for place in on_few.mean(1).argsort(descending=True)[:_WIDTH].tolist()]
    gains = gains_of(best, batches=half.batches, name=half.name).mean(1)
    place = int(gains.argmax())
    return best[place] if float(gains[place]) > 0 else None


def _confirmed(pair: Pair, gains_of: GainsOf, half: Half) -> Swap | None:
    """Return the swap where rows that didn't propose it agree; None where they don't."""
    (gains,) = gains_of([pair], batches=half.batches, name=half.name)
    n = len(gains)
    gain = float(gains.mean())
    error = float(gains.std()) / math.sqrt(n)
    return Swap(pair, gain, error, n) if gain > t.ppf(_SURE, n - 1) * error else None


def _gains(
    model: PreTrainedModel,
    anatomy: Anatomy,
    gone: Collection[HeadId],
    pairs: Sequence[Pair],
    *,
    batches: Sequence[Batch],
    name: str,
    loss: Loss,
    context: RunContext,
) -> Float[Tensor, "pairs examples"]:
    """Return by how much the loss of every example falls when a pair changes places."""
    sets: list[Collection[HeadId]] = [gone, *(pair.applied(gone) for pair in pairs)]
    masks = torch.tensor([HeadMask.without(heads, anatomy.heads).values for heads in sets])
    found = losses(
        model,
        anatomy,
        batches=batches,
        loss=loss,
        masks=masks,
        base=masks[0],
        context=context,
        name=name,
    ).double()
    return found[0] - found[1:]
