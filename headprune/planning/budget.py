"""How much may stay of a model, and what a plan must keep to."""

import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from math import floor
from typing import Any, Literal, TypeAlias

from headprune.errors import PlanError

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
        said: As it was written.
    """

    resource: Resource
    amount: Decimal
    is_share: bool
    said: str

    @classmethod
    def parse(cls, resource: Resource, text: str | Amount) -> "Target":
        """Read a target: ``0.8`` and ``80%`` are shares, ``20M`` and ``1.2G`` are numbers, and so is ``12ms`` for latency.

        >>> Target.parse("parameters", "80%").amount, Target.parse("flops", "1.5M").amount
        (Decimal('0.8'), Decimal('1500000.0'))

        Raises:
            PlanError: It is none of these.
        """
        said = str(text).strip()
        found = _NUMBER.match(said)
        suffix = said[found.end() :].strip().lower() if found else "?"
        number = Decimal(found.group()) if found else Decimal(0)
        if suffix == "%" or (suffix == "" and number <= 1):
            amount, is_share = number / (100 if suffix else 1), True
        elif resource == "latency":
            amount, is_share = number * {"ms": 1, "s": 1000}.get(suffix, 0), False
        else:
            amount, is_share = number * _SUFFIXES.get(suffix, 0), False
        if amount <= 0 or (is_share and amount > 1):
            examples = "12ms" if resource == "latency" else "20M"
            raise PlanError(
                f"{said!r} is no target",
                where=_option(resource),
                hint=f"give a share of the whole model (0.8 or 80%) or a number ({examples})",
            )
        return cls(resource, amount, is_share, said)

    @property
    def option(self) -> str:
        """How the command line asks for it."""
        return f"{_option(self.resource)} {self.said}"

    def limit(self, whole: Amount) -> Amount:
        """Return the most that may stay of ``whole``."""
        most = self.amount * Decimal(whole) if self.is_share else self.amount
        return float(most) if self.resource == "latency" else floor(most)

    def told(self, amount: Amount) -> str:
        """Return an amount with its unit."""
        number = f"{amount:,.3f}" if self.resource == "latency" else f"{amount:,.0f}"
        return f"{number} {_UNITS[self.resource]}"


def _option(resource: Resource) -> str:
    return f"--target-{resource.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a plan must keep to.

    Args:
        keep: Share of the heads that stay, above 0 and at most 1; rounded to the nearest number, in whole units. ``heads`` or
            ``target`` take its place.
        min_heads: Heads that stay in every layer.
        protect: Heads (``L0.H1``) and layers (``L0``) that stay whole.
        uniform: The same number of heads in every layer, which more formats can express.
        gqa: How heads go where several share a key/value head: whole groups, evenly from each, or one by one, where dead
            weight keeps the groups even (``pad``).
        sites: Which attentions may lose heads (empty: all): stacks (``encoder``), kinds (``cross``), both
            (``decoder.cross``) or single ones (``decoder.L2.cross``). ``keep`` is then a share of their heads.
        multiple_of: Every attention that may lose heads keeps a multiple of so many: of key/value groups where these go as
            a whole, of heads elsewhere.
        heads: The most heads that stay, of those of ``sites``.
        target: The most that the pruned model may take.
        rearrange: Heads of an attention go by what they lose together (:mod:`~headprune.planning.rearrange`).
    """

    keep: float = 1.0
    min_heads: int = 1
    protect: tuple[str, ...] = ()
    uniform: bool = False
    gqa: Literal["group", "even", "pad"] = "group"
    sites: tuple[str, ...] = ()
    multiple_of: int = 1
    heads: int | None = None
    target: Target | None = None
    rearrange: bool = False

    @property
    def budget(self) -> str:
        """How the command line asks for the budget."""
        if self.target is not None:
            return self.target.option
        return f"--keep {self.keep}" if self.heads is None else f"--heads {self.heads}"

    @property
    def at_odds(self) -> str:
        """The options that may be at odds with the budget, and the budget."""
        parts = [self.budget, f"--min-heads {self.min_heads}"]
        if self.protect:
            parts.append(f"--protect {','.join(self.protect)}")
        if self.multiple_of > 1:
            parts.append(f"--multiple-of {self.multiple_of}")
        return ", ".join(parts)

    def wanted(self, total: int) -> int:
        """Return how many of ``total`` heads the budget leaves; all, where it isn't one of heads."""
        if self.target is not None:
            return total
        return floor(self.keep * total + 0.5) if self.heads is None else self.heads

    def as_dict(self) -> dict[str, Any]:
        """Return all but the budget, for JSON."""
        left_out = {"keep", "heads", "target"}
        left_out |= {"multiple_of"} if self.multiple_of == 1 else set()
        left_out |= set() if self.rearrange else {"rearrange"}
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
        }
