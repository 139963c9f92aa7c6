"""What can go from one attention: units of heads, and the lawful options that they make.

Heads go in *units*. With multi-head attention a unit is a head. With grouped-query attention it is a whole key/value group
(``group``), or one head of every group of a layer (``even``): the two moves after which stock attention still runs. Where
a layer has a single key/value head (multi-query attention), a unit is one query head, whatever was said.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

from headprune.anatomy import Site
from headprune.errors import PlanError
from headprune.heads import HeadId, SiteId
from headprune.planning.budget import Constraints


@dataclass(frozen=True, slots=True)
class Unit:
    """Heads of one site that go together, and what that costs in importance."""

    site: SiteId
    heads: tuple[HeadId, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Option:
    """One lawful way to leave a site: which heads go, which stay, and what that costs in importance."""

    heads: tuple[HeadId, ...]
    kept: tuple[int, ...]
    cost: float


def units(
    site: Site,
    values: dict[HeadId, float],
    *,
    protected: Collection[HeadId],
    constraints: Constraints,
) -> Iterator[Unit]:
    """Yield the units of a site that may go, one after the other, the cheapest first."""
    left = len(site.heads)
    for unit in candidates(site, values, protected=protected, constraints=constraints):
        left -= len(unit.heads)
        if left < _least(site, constraints):
            return
        yield unit


def options(
    site: Site,
    values: dict[HeadId, float],
    *,
    protected: Collection[HeadId],
    constraints: Constraints,
) -> tuple[Option, ...]:
    """Return the lawful options of a site, those that take the fewest heads first.

    Of units of one size it is the cheapest that go: no other choice of as many costs less.

    Raises:
        PlanError: There is none: no multiple can stay.
    """
    by_size: dict[int, list[Unit]] = {}
    for unit in candidates(site, values, protected=protected, constraints=constraints):
        by_size.setdefault(len(unit.heads), []).append(unit)
    found: list[Option] = []
    for counts in product(*(range(len(same) + 1) for same in by_size.values())):
        going = [
            unit
            for same, count in zip(by_size.values(), counts, strict=True)
            for unit in same[:count]
        ]
        heads = tuple(head for unit in going for head in unit.heads)
        gone = {head.head for head in heads}
        kept = tuple(head for head in site.heads if head not in gone)
        if is_lawful(site, kept, constraints):
            found.append(Option(heads, kept, sum((unit.cost for unit in going), 0.0)))
    if not found:
        what = "groups" if _counts_groups(site, constraints) else "heads"
        number = len(site.groups(site.slots)) if what == "groups" else len(site.slots)
        raise PlanError(
            f"{site.id} has {number} {what}, and none of the numbers that may stay is a multiple of {constraints.multiple_of}",
            where=f"--multiple-of {constraints.multiple_of}",
            hint="use a divisor of that, protect fewer heads, or lower --min-heads",
        )
    return tuple(sorted(found, key=lambda option: len(option.heads)))


def is_even(site: Site, constraints: Constraints) -> bool:
    """Whether heads go evenly from all groups of a site."""
    return constraints.gqa == "even" or site.num_key_value_heads == 1


def candidates(
    site: Site,
    values: dict[HeadId, float],
    *,
    protected: Collection[HeadId],
    constraints: Constraints,
) -> list[Unit]:
    """Return the units of a site that could go if none had to stay, the cheapest first."""
    groups = [
        sorted((HeadId(site.id, head) for head in members), key=lambda h: (values[h], h))
        for members in site.groups(site.heads).values()
    ]
    together: list[tuple[HeadId, ...]]
    if site.group_size > 1 and is_even(site, constraints):
        # The j-th unit is the j-th least important head of every group; a protected head keeps its rank for all.
        free = [[head for head in members if head not in protected] for members in groups]
        together = list(zip(*free, strict=False))
    elif site.group_size > 1 and constraints.gqa == "group":
        together = [
            tuple(members) for members in groups if not any(head in protected for head in members)
        ]
    else:
        together = [(head,) for members in groups for head in members if head not in protected]
    return sorted(
        (Unit(site.id, heads, sum(values[head] for head in heads)) for heads in together),
        key=lambda unit: (unit.cost, unit.heads),
    )


def _least(site: Site, constraints: Constraints) -> int:
    return max(constraints.min_heads, site.min_heads)


def is_lawful(site: Site, kept: tuple[int, ...], constraints: Constraints) -> bool:
    """Whether a site may be left with ``kept``; as it is, but for the multiple, it always may."""
    pad = constraints.gqa == "pad"
    slots = site.after(kept, pad=pad).slots
    number = len(site.groups(slots)) if _counts_groups(site, constraints) else len(slots)
    if number % constraints.multiple_of:
        return False
    if kept == site.heads:
        return True
    return len(kept) >= _least(site, constraints) and (
        site.group_size == 1 or site.is_lawful(slots)
    )


def _counts_groups(site: Site, constraints: Constraints) -> bool:
    """Whether it is groups whose number is to be a multiple: those that heads which go evenly leave are all there."""
    return site.group_size > 1 and not is_even(site, constraints)
