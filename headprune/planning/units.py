"""What can be removed from one attention: units of heads, and the lawful options that they make.

Heads are removed in *units*. With multi-head attention a unit is a head. With grouped-query attention it is a whole key/value
group (``group``), or one head of every group of a layer (``even``): the two moves after which stock attention still runs.
Where a layer has a single key/value head (multi-query attention), a unit is one query head, whatever the setting.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from headprune.anatomy.sites import Site
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.heads import HeadId


@dataclass(frozen=True, slots=True)
class Unit:
    """Heads of one site that are removed together, and what that costs in importance."""

    heads: tuple[HeadId, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Option:
    """One lawful cut of the attentions of a menu.

    Args:
        removed: The heads that are removed.
        kept: Of each attention, the original indices of the heads that are kept.
        cost: The importance that is lost.
    """

    removed: tuple[HeadId, ...]
    kept: tuple[tuple[int, ...], ...]
    cost: float

    @property
    def num_kept(self) -> int:
        """How many heads are kept."""
        return sum(map(len, self.kept))


@dataclass(frozen=True, slots=True)
class Menu:
    """Attentions that are decided together (one, or all of a uniform plan), with their options, fewest heads removed first."""

    sites: tuple[Site, ...]
    options: tuple[Option, ...]


def menu_of(
    site: Site,
    values: Mapping[HeadId, float],
    *,
    protected: frozenset[HeadId],
    constraints: Constraints,
) -> Menu:
    """Return the lawful options of a site.

    Of units of one size it is the cheapest that are removed: no other choice of as many costs less.

    Raises:
        PlanError: There is none: no multiple can be kept.
    """
    by_size: dict[int, list[Unit]] = {}
    for unit in units_of(site, values, protected=protected, constraints=constraints):
        by_size.setdefault(len(unit.heads), []).append(unit)
    options: list[Option] = []
    for counts in product(*(range(len(same) + 1) for same in by_size.values())):
        pairs = zip(by_size.values(), counts, strict=True)
        chosen = [unit for same, count in pairs for unit in same[:count]]
        removed = tuple(head for unit in chosen for head in unit.heads)
        indices = {head.head for head in removed}
        kept = tuple(head for head in site.heads if head not in indices)
        if _is_lawful(site, kept, constraints):
            options.append(Option(removed, (kept,), sum((unit.cost for unit in chosen), 0.0)))
    if not options:
        counted = "groups" if _counts_groups(site, constraints) else "heads"
        number = len(site.groups(site.slots)) if counted == "groups" else len(site.slots)
        raise PlanError(
            f"{site.id} has {number} {counted}, and no number that may be kept is a multiple of {constraints.multiple_of}",
            where=f"`multiple_of={constraints.multiple_of}`",
            hint="use a divisor of that, protect fewer heads, or lower `min_heads`",
        )
    return Menu((site,), tuple(sorted(options, key=lambda option: len(option.removed))))


def uniform_menu(menus: Iterable[Menu]) -> Menu:
    """Return the options that keep the same number of heads in every attention: of each number the cheapest.

    Raises:
        PlanError: There is none.
    """
    sites: list[Site] = []
    by_count: list[dict[int, Option]] = []
    for menu in menus:
        sites += menu.sites
        cheapest: dict[int, Option] = {}
        for option in sorted(menu.options, key=lambda option: option.cost):
            cheapest.setdefault(option.num_kept, option)
        by_count.append(cheapest)
    shared = set.intersection(*map(set, by_count)) if by_count else set()
    if not shared:
        raise PlanError(
            "there is no number of heads that every layer can keep",
            where="`uniform`",
            hint="protect fewer heads of a layer, or lower `min_heads`, or leave `uniform` out",
        )
    rows = ([options[count] for options in by_count] for count in sorted(shared, reverse=True))
    return Menu(tuple(sites), tuple(map(_joined, rows)))


def _joined(options: Sequence[Option]) -> Option:
    return Option(
        tuple(head for option in options for head in option.removed),
        tuple(option.kept[0] for option in options),
        sum(option.cost for option in options),
    )


def removable(units: Iterable[Unit], site: Site, constraints: Constraints) -> Iterator[Unit]:
    """Yield a site's units that can be removed while enough heads are kept, the cheapest first."""
    left = len(site.heads)
    for unit in units:
        left -= len(unit.heads)
        if left < _least(site, constraints):
            return
        yield unit


def units_of(
    site: Site,
    values: Mapping[HeadId, float],
    *,
    protected: frozenset[HeadId],
    constraints: Constraints,
) -> list[Unit]:
    """Return the units of a site that could be removed if none had to be kept, the cheapest first."""
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
        together = [tuple(members) for members in groups if not protected & set(members)]
    else:
        together = [(head,) for members in groups for head in members if head not in protected]
    return sorted(
        (Unit(heads, sum(values[head] for head in heads)) for heads in together),
        key=lambda unit: (unit.cost, unit.heads),
    )


def is_even(site: Site, constraints: Constraints) -> bool:
    """Whether heads are removed evenly from all groups of a site."""
    return constraints.gqa == "even" or site.num_key_value_heads == 1


def _least(site: Site, constraints: Constraints) -> int:
    return max(constraints.min_heads, site.min_heads)


def _is_lawful(site: Site, kept: tuple[int, ...], constraints: Constraints) -> bool:
    """Whether a site may be left with ``kept``; as it is, but for the multiple, it always may."""
    slots = site.after(kept, pad=constraints.gqa == "pad").slots
    number = len(site.groups(slots)) if _counts_groups(site, constraints) else len(slots)
    if number % constraints.multiple_of:
        return False
    if kept == site.heads:
        return True
    even = site.group_size == 1 or site.is_lawful(slots)
    return even and len(kept) >= _least(site, constraints)


def _counts_groups(site: Site, constraints: Constraints) -> bool:
    """Whether the number of groups is to be a multiple: heads that are removed evenly leave all groups."""
    return site.group_size > 1 and not is_even(site, constraints)
