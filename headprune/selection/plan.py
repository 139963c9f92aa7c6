"""Choose which heads go: pure, in milliseconds, and only what the architecture can run.

Heads go in *units*. With multi-head attention a unit is a head. With grouped-query attention it is a whole key/value group
(``group``), or one head of every group of a layer (``even``): the two moves after which stock attention still runs. Where
a layer has a single key/value head (multi-query attention), a unit is one query head, whatever was said.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import floor
from typing import Any, Literal

from headprune.anatomy import Anatomy, Site
from headprune.errors import PlanError
from headprune.heads import HeadId, HeadScores, PruningPlan, SiteId
from headprune.selection.names import protected_heads, selected_sites


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a plan must keep to.

    Args:
        keep: Share of the heads that stay, above 0 and at most 1.
        min_heads: Heads that stay in every layer.
        protect: Heads (``L0.H1``) and layers (``L0``) that stay whole.
        uniform: The same number of heads in every layer, which more formats can express.
        gqa: How heads go where several share a key/value head: whole groups, evenly from each, or one by one, where dead
            weight keeps the groups even (``pad``).
        sites: Which attentions may lose heads (empty: all): stacks (``encoder``), kinds (``cross``), both
            (``decoder.cross``) or single ones (``decoder.L2.cross``). ``keep`` is then a share of their heads.
    """

    keep: float
    min_heads: int = 1
    protect: tuple[str, ...] = ()
    uniform: bool = False
    gqa: Literal["group", "even", "pad"] = "group"
    sites: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return all but the keep ratio, for JSON."""
        found = {name: value for name, value in asdict(self).items() if name != "keep"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
        }


@dataclass(frozen=True, slots=True)
class _Unit:
    """Heads of one site that go together, and what that costs in importance."""

    site: SiteId
    heads: tuple[HeadId, ...]
    cost: float


def check_constraints(anatomy: Anatomy, constraints: Constraints) -> int:
    """Return how many heads would stay, before any scores are computed.

    Raises:
        PlanError: The constraints contradict each other or the architecture.
    """
    anatomy = selected_sites(anatomy, constraints.sites)
    total = len(anatomy.heads)
    if not 0 < constraints.keep <= 1:
        raise PlanError(
            f"a share of {constraints.keep} of the heads can't be kept",
            where="--keep",
            hint="give a number above 0 and at most 1, such as --keep 0.7",
        )
    protected = protected_heads(anatomy, constraints.protect)
    target = floor(constraints.keep * total + 0.5)
    least = sum(_fewest(site, protected, constraints) for site in anatomy.sites)
    if target < least:
        raise PlanError(
            f"--keep {constraints.keep:g} leaves {target} of {total} heads, and at least {least} must stay",
            where=f"--keep {constraints.keep:g}, --min-heads {constraints.min_heads}"
            + (f", --protect {','.join(constraints.protect)}" if constraints.protect else ""),
            hint=f"use --keep {least / total + 0.005:.2f} or more, or loosen the other",
        )
    if constraints.uniform:
        _check_uniform(anatomy, protected, constraints)
    return target


def make_plan(scores: HeadScores, anatomy: Anatomy, *, constraints: Constraints) -> PruningPlan:
    """Return the plan that removes the least important heads within the constraints.

    Units are taken from the cheapest on until the budget is used up. Where all units have one size, as in a model that
    wasn't pruned before, no other choice costs less importance in total.

    Raises:
        PlanError: The scores are of other heads, or :func:`check_constraints` says no.
    """
    gone = heads_that_go(scores, anatomy, constraints)
    protected = protected_heads(anatomy, constraints.protect)
    wanted = len(selected_sites(anatomy, constraints.sites).heads) - check_constraints(
        anatomy, constraints
    )
    if constraints.keep < 1 and not gone:
        raise PlanError(
            f"--keep {constraints.keep:g} removes no head: the smallest step is larger than that",
            where="--keep, --gqa, --uniform",
            hint="use a smaller --keep, or other units (--gqa group, --gqa even)",
        )
    kept = anatomy.kept_per_site(gone)
    return PruningPlan(
        remove=tuple(head for head in anatomy.heads if head in gone),
        kept_per_site={str(site): len(heads) for site, heads in kept.items()},
        budget={
            "keep": constraints.keep,
            "heads_before": len(anatomy.heads),
            "heads_wanted": len(anatomy.heads) - wanted,
            "heads_after": len(anatomy.heads) - len(gone),
        },
        constraints={
            "min_heads": constraints.min_heads,
            "protect": list(constraints.protect),
            "uniform": constraints.uniform,
            "gqa": constraints.gqa if any(s.group_size > 1 for s in anatomy.sites) else None,
            **({"sites": list(constraints.sites)} if constraints.sites else {}),
        },
        reasons=_reasons(scores, gone, protected),
        model=scores.model,
    )


def heads_that_go(
    scores: HeadScores, anatomy: Anatomy, constraints: Constraints
) -> frozenset[HeadId]:
    """Return the heads that a plan from these scores removes; none where the smallest step is too large.

    Raises:
        PlanError: See :func:`make_plan`.
    """
    values = scores.importance()
    missing = [head for head in anatomy.heads if head not in values]
    if missing or len(values) != len(anatomy.heads):
        raise PlanError(
            f"the scores are of {len(values)} heads and the model has {len(anatomy.heads)}"
            + (f" (no score for {missing[0]})" if missing else ""),
            where="scores",
            hint="score this model: headprune score MODEL",
        )
    target = check_constraints(anatomy, constraints)
    protected = protected_heads(anatomy, constraints.protect)
    selected = selected_sites(anatomy, constraints.sites)
    units = [
        unit
        for site in selected.sites
        for unit in _units(site, values, protected=protected, constraints=constraints)
    ]
    if constraints.uniform:
        return frozenset(_take_uniformly(units, selected, constraints))
    return frozenset(_take(units, len(selected.heads) - target))


def is_padded(plan: PruningPlan) -> bool:
    """Whether a plan leaves groups uneven and counts on dead weight to even them out."""
    return plan.constraints.get("gqa") == "pad"


def _units(
    site: Site,
    values: dict[HeadId, float],
    *,
    protected: set[HeadId],
    constraints: Constraints,
) -> Iterator[_Unit]:
    """Yield the units of a site that may go, the cheapest first."""
    groups = [
        sorted((HeadId(site.id, head) for head in members), key=lambda h: (values[h], h))
        for members in site.groups(site.heads).values()
    ]
    candidates: list[tuple[HeadId, ...]]
    if site.group_size > 1 and _is_even(site, constraints):
        # The j-th unit is the j-th least important head of every group; a protected head keeps its rank for all.
        free = [[head for head in members if head not in protected] for members in groups]
        candidates = list(zip(*free, strict=False))
    elif site.group_size > 1 and constraints.gqa == "group":
        candidates = [tuple(members) for members in groups if not protected & set(members)]
    else:
        candidates = [(head,) for members in groups for head in members if head not in protected]
    units = sorted(
        (_Unit(site.id, heads, sum(values[head] for head in heads)) for heads in candidates),
        key=lambda unit: (unit.cost, unit.heads),
    )
    left = len(site.heads)
    least = max(constraints.min_heads, site.min_heads)
    for unit in units:
        left -= len(unit.heads)
        if left < least:
            return
        yield unit


def _is_even(site: Site, constraints: Constraints) -> bool:
    return constraints.gqa == "even" or site.num_key_value_heads == 1


def _fewest(site: Site, protected: set[HeadId], constraints: Constraints) -> int:
    """Return how many heads of a site must stay at the least."""
    flat = {HeadId(site.id, head): 0.0 for head in site.heads}
    going = _units(site, flat, protected=protected, constraints=constraints)
    return len(site.heads) - sum(len(unit.heads) for unit in going)


def _take(units: Iterable[_Unit], budget: int) -> list[HeadId]:
    taken: list[HeadId] = []
    for unit in sorted(units, key=lambda unit: (unit.cost, unit.heads)):
        if len(taken) + len(unit.heads) <= budget:
            taken.extend(unit.heads)
    return taken


def _take_uniformly(
    units: Sequence[_Unit], anatomy: Anatomy, constraints: Constraints
) -> list[HeadId]:
    taken: list[HeadId] = []
    for site in anatomy.sites:
        wanted = len(site.heads) - _uniform_target(site, constraints)
        taken.extend(_take((unit for unit in units if unit.site == site.id), wanted))
    return taken


def _uniform_target(site: Site, constraints: Constraints) -> int:
    """Return how many heads stay in each layer: the keep ratio, rounded to whole units, and at least one unit."""
    groups = site.groups(site.heads)
    size = (
        1
        if site.group_size == 1 or constraints.gqa == "pad"
        else len(groups)
        if _is_even(site, constraints)
        else len(site.heads) // len(groups)
    )
    units = max(1, floor(constraints.keep * len(site.heads) / size + 0.5))
    return units * size


def _check_uniform(anatomy: Anatomy, protected: set[HeadId], constraints: Constraints) -> None:
    if len({len(site.heads) for site in anatomy.sites}) > 1:
        raise PlanError(
            "the layers already have different numbers of heads",
            where="--uniform",
            hint="start from the unpruned model, or leave --uniform out",
        )
    for site in anatomy.sites:
        fewest = _fewest(site, protected, constraints)
        target = _uniform_target(site, constraints)
        if fewest > target:
            raise PlanError(
                f"{site.id} must keep {fewest} heads and the same number for all layers would be {target}",
                where="--uniform",
                hint="protect fewer heads of a layer, or lower --min-heads, or raise --keep",
            )


def _reasons(
    scores: HeadScores, gone: Collection[HeadId], protected: set[HeadId]
) -> dict[str, str]:
    """Say why, for every head that stays although its score alone would have it go, and the other way round."""
    by_score = set(scores.ranked()[: len(gone)])
    reasons: dict[str, str] = {}
    for head in scores.heads:
        if head in by_score and head not in gone:
            reasons[str(head)] = (
                "kept: protected" if head in protected else "kept: its layer or group needs it"
            )
        elif head in gone and head not in by_score:
            reasons[str(head)] = "removed: with its group, or to make room for one that is kept"
    return reasons
