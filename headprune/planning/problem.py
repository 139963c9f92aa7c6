"""A cut, as the constraints ask for it, checked against a model before any work starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, lcm

from headprune.anatomy.sites import Anatomy, Site
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.planning.constraints import (
    Amount,
    Target,
    conflicting_fields,
    heads_to_keep,
    protected_heads,
    selected_sites,
    target_of,
)
from headprune.planning.costs import CostModel
from headprune.planning.units import Menu, is_even, menu_of, uniform_menu


@dataclass(frozen=True)
class Problem:
    """A cut that was checked against a model: it can be made, whatever the scores are.

    Args:
        anatomy: The attentions that may lose heads.
        constraints: The budget, and what else to keep to.
        protected: Heads that are kept.
        target: The budget if it limits the whole model, else None.
        costs: The costs that the target limits.
    """

    anatomy: Anatomy
    constraints: Constraints
    protected: frozenset[HeadId]
    target: Target | None
    costs: CostModel | None

    @property
    def heads_to_keep(self) -> int:
        """How many heads of these attentions the budget keeps; all, where it is a target."""
        return heads_to_keep(self.constraints, len(self.anatomy.heads))

    @property
    def fewest_to_keep(self) -> int:
        """How many heads of these attentions must be kept, whatever the budget."""
        return sum(_fewest(menu) for menu in self.menus())

    def menus(self, values: Mapping[HeadId, float] | None = None) -> list[Menu]:
        """Return the options of each attention; without ``values`` as they are while all heads are equally important."""
        values = dict.fromkeys(self.anatomy.heads, 0.0) if values is None else values
        return [
            menu_of(site, values, protected=self.protected, constraints=self.constraints)
            for site in self.anatomy.sites
        ]


def check_constraints(
    anatomy: Anatomy, constraints: Constraints, *, costs: CostModel | None = None
) -> Problem:
    """Return the problem that constraints pose, before any scores are computed.

    Without ``costs`` it isn't checked whether a target is within reach.

    Raises:
        PlanError: The constraints contradict each other or the architecture.
    """
    problem = Problem(
        selected_sites(anatomy, constraints.sites),
        constraints,
        protected_heads(anatomy, constraints.protect),
        target_of(constraints),
        costs,
    )
    menus = problem.menus()
    _check_number_of_heads(problem, menus)
    if constraints.uniform:
        menus = [_checked_uniform(problem, menus)]
    if problem.target is not None and costs is not None:
        check_target(problem.target, costs, menus, conflicting_fields(constraints))
    return problem


def _check_number_of_heads(problem: Problem, menus: Sequence[Menu]) -> None:
    constraints, kept, total = (
        problem.constraints,
        problem.heads_to_keep,
        len(problem.anatomy.heads),
    )
    if kept > total:
        raise PlanError(
            f"{kept} heads can't be kept of {total}",
            where=f"`heads={kept}`",
            hint=f"give a number from 1 to {total}",
        )
    least = sum(map(_fewest, menus))
    if kept < least:
        enough = f"`heads={least}`" if constraints.heads else f"`keep={least / total + 0.005:.2f}`"
        raise PlanError(
            f"{_budget(constraints)} keeps {kept} of {total} heads, and at least {least} must be kept"
            + _of_roles(problem),
            where=conflicting_fields(constraints),
            hint=f"use {enough} or more, or loosen the other",
        )
    most = sum(max(option.num_kept for option in menu.options) for menu in menus)
    if most < kept and constraints.heads is None and problem.target is None:
        raise PlanError(
            f"{_budget(constraints)} keeps {kept} of {total} heads; multiples of {constraints.multiple_of} keep at most {most}",
            where=conflicting_fields(constraints),
            hint=f"use `heads={most}`, or another `multiple_of`",
        )


def _of_roles(problem: Problem) -> str:
    """Return whose heads these are, where roles are protected."""
    roles = problem.constraints.protect_role
    heads = f" ({len(problem.protected)} are protected, by role: {', '.join(roles)})"
    return heads if roles else ""


def _budget(constraints: Constraints) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in constraints.budgets.items())


def _fewest(menu: Menu) -> int:
    return min(option.num_kept for option in menu.options)


def _checked_uniform(problem: Problem, menus: Sequence[Menu]) -> Menu:
    """Return the options that keep the same number of heads in every attention."""
    constraints = problem.constraints
    if len({len(site.heads) for site in problem.anatomy.sites}) > 1:
        raise PlanError(
            "the layers already have different numbers of heads",
            where="`uniform`",
            hint="start from the unpruned model, or leave `uniform` out",
        )
    loosen = "protect fewer heads of a layer, or lower `min_heads`, or"
    if constraints.keep is not None:
        for menu in menus:
            fewest, number = _fewest(menu), uniform_number(menu.sites[0], constraints)
            if fewest > number:
                raise PlanError(
                    f"{menu.sites[0].id} must keep {fewest} heads and the same number for all layers would be {number}",
                    where="`uniform`",
                    hint=f"{loosen} raise `keep`",
                )
    uniform = uniform_menu(menus)
    least = _fewest(uniform)
    if constraints.heads is not None and least > constraints.heads:
        raise PlanError(
            f"with the same number of heads in every layer at least {least} must be kept",
            where=f"`uniform`, {conflicting_fields(constraints)}",
            hint=f"{loosen} leave `uniform` out",
        )
    return uniform


def uniform_number(site: Site, constraints: Constraints) -> int:
    """Return how many heads each layer keeps: the keep ratio, rounded to whole units, and at least one unit."""
    num_groups, size = len(site.groups(site.heads)), constraints.multiple_of
    if site.group_size > 1 and is_even(site, constraints):
        size = lcm(num_groups, size)
    elif site.group_size > 1 and constraints.gqa == "group":
        size *= len(site.heads) // num_groups
    share = 1.0 if constraints.keep is None else constraints.keep
    return max(1, floor(share * len(site.heads) / size + 0.5)) * size


def check_target(target: Target, costs: CostModel, menus: Sequence[Menu], fields: str) -> None:
    """Refuse a target that the options of the attentions can't reach; the error names the smallest that they can.

    Raises:
        PlanError: It is out of reach.
    """
    limit = target.limit(costs.whole)
    least = costs.whole - sum(max(savings_of(menu, costs)) for menu in menus)
    if least <= limit:
        return
    share = ceil(least / costs.whole * 1000) / 1000
    raise PlanError(
        f"the target is {target.with_unit(limit)} of {target.with_unit(costs.whole)}, "
        f"and the smallest that pruning heads can reach is {target.with_unit(least)} ({share:.1%})",
        where=fields,
        hint=f"use `target_{target.resource}={share:g}` or more, or loosen the other",
    )


def savings_of(menu: Menu, costs: CostModel) -> list[Amount]:
    """Return how much each option of a menu saves."""
    return [
        sum(costs.saved(site, kept) for site, kept in zip(menu.sites, option.kept, strict=True))
        for option in menu.options
    ]
