"""What a plan must keep to, as the settings put it: budgets read, names found in a model, and where to stop on a curve."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import floor
from typing import Any, Literal, TypeAlias, get_args

from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy
from headprune.config import BUDGETS, Constraints
from headprune.errors import PlanError
from headprune.heads import HeadId, SiteId, select_heads

_SHOWN = 4
"""So many names of heads are listed in an error."""

Resource = Literal["parameters", "flops", "kv_cache", "latency"]
Amount: TypeAlias = int | float
"""Of a resource: a whole number, but for milliseconds."""

_UNITS: dict[Resource, str] = {
    "parameters": "parameters",
    "flops": "FLOPs per token",
    "kv_cache": "bytes of key/value cache per token",
    "latency": "ms",
}
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """The most of a resource that the pruned model may take.

    Args:
        resource: What is counted.
        amount: A share of the whole model before pruning, or an absolute number: of parameters, of FLOPs per token with 512
            tokens of context, of bytes of key/value cache per token, of milliseconds.
        is_share: Which of the two.
        text: As it was written.
    """

    resource: Resource
    amount: Decimal
    is_share: bool
    text: str

    @classmethod
    def parse(cls, resource: Resource, value: str | Amount) -> "Target":
        """Read a target: ``0.8`` and ``80%`` are shares, ``20M`` and ``1.2G`` are numbers, and so is ``12ms`` for latency.

        >>> Target.parse("parameters", "80%").amount, Target.parse("flops", "1.5M").amount
        (Decimal('0.8'), Decimal('1500000.0'))

        Raises:
            PlanError: It is none of these.
        """
        text = str(value).strip()
        match = _NUMBER.match(text)
        suffix = text[match.end() :].strip().lower() if match else "?"
        number = Decimal(match.group()) if match else Decimal(0)
        if suffix == "%" or (suffix == "" and number <= 1):
            amount, is_share = number / (100 if suffix else 1), True
        elif resource == "latency":
            amount, is_share = number * {"ms": 1, "s": 1000}.get(suffix, 0), False
        else:
            amount, is_share = number * _SUFFIXES.get(suffix, 0), False
        if amount <= 0 or (is_share and amount > 1):
            example = "12ms" if resource == "latency" else "20M"
            raise PlanError(
                f"{text!r} is no target",
                where=f"`target_{resource}`",
                hint=f"give a share of the whole model (0.8 or 80%) or a number ({example})",
            )
        return cls(resource, amount, is_share, text)

    def limit(self, whole: Amount) -> Amount:
        """Return the most that may be left of ``whole``."""
        most = self.amount * Decimal(whole) if self.is_share else self.amount
        return float(most) if self.resource == "latency" else floor(most)

    def with_unit(self, amount: Amount) -> str:
        """Return an amount with its unit."""
        number = f"{amount:,.3f}" if self.resource == "latency" else f"{amount:,.0f}"
        return f"{number} {_UNITS[self.resource]}"


def target_of(constraints: Constraints) -> Target | None:
    """Return the target that is the budget; None where the budget is one of heads.

    Raises:
        PlanError: The target can't be read as a share or a number.
    """
    for resource in get_args(Resource):
        text = getattr(constraints, f"target_{resource}")
        if text is not None:
            return Target.parse(resource, text)
    return None


def require_budget(constraints: Constraints, *, where: str) -> None:
    """Refuse constraints that no plan can be made by: a tolerance takes rows that decide, which objects in memory don't have.

    Raises:
        PlanError: They have no budget, or a tolerance.
    """
    if not constraints.budgets or constraints.max_drop is not None:
        raise PlanError(
            "there is no budget that a plan can be made by",
            where=where,
            hint="give one of `keep`, `heads`, `target_parameters`, `target_flops`, `target_kv_cache`, `target_latency`",
        )


def with_keep(constraints: Constraints, keep: float) -> Constraints:
    """Return the constraints with a keep ratio in the place of any other budget."""
    return constraints.model_copy(update={**dict.fromkeys(BUDGETS), "keep": keep})


def heads_to_keep(constraints: Constraints, total: int) -> int:
    """Return how many of ``total`` heads the budget keeps; all, where it isn't one of heads."""
    if constraints.heads is not None:
        return constraints.heads
    return total if constraints.keep is None else floor(constraints.keep * total + 0.5)


def conflicting_fields(constraints: Constraints) -> str:
    """Return the budget and the fields that may contradict it."""
    fields = {**constraints.budgets, "min_heads": constraints.min_heads}
    if constraints.protect:
        more = ",..." if len(constraints.protect) > _SHOWN else ""
        fields["protect"] = ",".join(constraints.protect[:_SHOWN]) + more
    if constraints.protect_role:
        fields["protect_role"] = ",".join(constraints.protect_role)
    if constraints.multiple_of > 1:
        fields["multiple_of"] = constraints.multiple_of
    return ", ".join(f"`{name}={value}`" for name, value in fields.items())


def as_dict(constraints: Constraints) -> dict[str, Any]:
    """Return all but the budget, as scores and plans note it in JSON."""
    return {
        "min_heads": constraints.min_heads,
        "protect": list(constraints.protect),
        "uniform": constraints.uniform,
        "gqa": constraints.gqa,
        "sites": list(constraints.sites),
        **({"multiple_of": constraints.multiple_of} if constraints.multiple_of > 1 else {}),
        **({"rearrange": True} if constraints.rearrange else {}),
        **({"protect_role": list(constraints.protect_role)} if constraints.protect_role else {}),
    }


def with_role_heads(constraints: Constraints, roles: Roles | None) -> Constraints:
    """Return the constraints; heads that have a role to protect are protected by name.

    Raises:
        PlanError: The roles don't say who has it.
    """
    named: list[str] = []
    for role in constraints.protect_role:
        if roles is None or role not in roles.names:
            reason = "" if roles is None else f": {roles.undefined.get(role, 'the file lacks it')}"
            raise PlanError(
                f"it isn't known which heads have the role {role}{reason}",
                where=f"`protect_role={role}`",
                hint="measure it: headprune analyze MODEL, then `roles=FILE`; in Python roles=hp.analyze(model, batches)",
            )
        named += map(str, roles.heads_with(role))
    names = dict.fromkeys((*constraints.protect, *named))
    return constraints.model_copy(update={"protect": tuple(names)})


def selected_sites(anatomy: Anatomy, names: Sequence[str]) -> Anatomy:
    """Return the anatomy of the attentions that ``names`` select (all, where there are none).

    Raises:
        PlanError: A name fits none.
    """
    if not names:
        return anatomy
    fitting: set[SiteId] = set()
    for name in names:
        matching = {site.id for site in anatomy.sites if name in _descriptions(site.id)}
        if not matching:
            known = sorted({word for site in anatomy.sites for word in _descriptions(site.id)[1:]})
            raise PlanError(
                f"the model has no attention {name!r}",
                where="`sites`",
                hint=f"choose from {', '.join(known)}, or name one, such as {anatomy.sites[0].id}",
            )
        fitting |= matching
    return replace(anatomy, sites=tuple(site for site in anatomy.sites if site.id in fitting))


def _descriptions(site: SiteId) -> tuple[str, ...]:
    """Return how an attention may be selected: by its name, its kind, its stack, or both."""
    stack = (site.stack, f"{site.stack}.{site.kind}") if site.stack else ()
    return (str(site), site.kind, *stack)


def protected_heads(anatomy: Anatomy, names: Iterable[str]) -> frozenset[HeadId]:
    """Return the heads that ``names`` of heads and layers select.

    Raises:
        PlanError: The model has no such head or layer.
    """
    protected: set[HeadId] = set()
    sites = {str(site.id): site for site in anatomy.sites}
    for name in names:
        if name in sites:
            protected |= {HeadId(sites[name].id, head) for head in sites[name].heads}
        elif re.fullmatch(r"(\w+\.)?L\d+(\.[a-z]+)?", name):
            raise PlanError(
                f"the model has no layer {name}",
                where="`protect`",
                hint=f"it has {', '.join(sites)}",
            )
        else:
            protected |= set(select_heads([name], anatomy.heads))
    return frozenset(protected)


# A straight line has no knee, and equal heights are equal, whatever their last bits say.
_ROUNDING = 1e-9


def knee(shares: Sequence[float], values: Sequence[float]) -> int | None:
    """Return the index of the point that lies highest above the chord through the curve's ends.

    With ``a`` the end with the most heads and ``b`` that with the fewest, it is the largest

        ``d_i = v_i - v_b - (v_a - v_b) (s_i - s_b) / (s_a - s_b)``,

    of equal ones that with the fewest heads. On axes scaled to 0..1 that is the point farthest from the chord (after "Kneedle",
    Satopää et al. 2011). It describes the curve; it is no test, and moves with the ends.

    Args:
        shares: Shares of heads kept, [points], falling.
        values: The quality there, [points]; higher is better.

    Returns:
        None where the curve doesn't fall from end to end, or lies nowhere above its chord.

    >>> knee([1.0, 0.75, 0.5, 0.25], [0.9, 0.88, 0.85, 0.1])
    2
    """
    span, fall = shares[0] - shares[-1], values[0] - values[-1]
    if span <= 0 or fall <= 0:
        return None
    above = [
        value - values[-1] - fall * (share - shares[-1]) / span
        for share, value in zip(shares, values, strict=True)
    ]
    highest = max(above)
    if highest <= _ROUNDING * fall:
        return None
    return max(index for index, height in enumerate(above) if height >= highest - _ROUNDING * fall)


def last_within(worst: Sequence[float], limit: float) -> int | None:
    """Return the last index up to which, from the first on, no drop goes beyond ``limit``.

    Looking from the whole model on, and no further than the first point that fails, keeps the error of each interval for the
    point that comes out, however many points there are (testing in a fixed sequence: Maurer et al. 1995).

    Args:
        worst: Upper ends of the drops' intervals, [points], from the most heads to the fewest.
        limit: The largest drop that is allowed.

    >>> last_within([0.0, 0.004, 0.02, 0.009], 0.01)
    1
    """
    within = None
    for index, drop in enumerate(worst):
        if drop > limit:
            break
        within = index
    return within
