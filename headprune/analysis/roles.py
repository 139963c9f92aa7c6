"""Roles of heads as a document: every number with its baseline, n and interval. Knows no model, imports no torch."""

from collections.abc import Collection, Iterable, Sequence
from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from headprune.analysis.catalogue import ROLES, Role
from headprune.artefact import Artefact
from headprune.fate import RoleFate, RoleFates
from headprune.heads import COLOURS, HeadId, HeadName, head_map

_SHOWN = 4
"""So many heads of a role are named in a short text."""

Numbers = tuple[float | None, ...]


class Measure(BaseModel):
    """One number of every head; its lists are parallel to the document's heads, None where a head has no such number.

    Args:
        role: The role.
        column: Which of the role's numbers it is, where it has several: an offset, a relation; empty where it has one.
        values: The numbers.
        low: Lower ends of the 95 % intervals; None where there is one example.
        high: Upper ends.
        baseline: The same number of attention that is spread evenly, or at the best fixed distance.
        queries: How many queries (or trials) each number is a mean of.
        examples: How many examples (rows, sequences, sentences) those come from.
        passes: Whether the head has the role by it; None where that is undecided.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    role: str
    column: str = ""
    values: Numbers
    low: Numbers
    high: Numbers
    baseline: Numbers
    queries: tuple[int, ...]
    examples: tuple[int, ...]
    passes: tuple[bool | None, ...] = ()


class Roles(Artefact):
    """What every head does, with what it was measured on.

    ``undefined`` says of roles that weren't measured, why. ``thresholds`` are those that ``passes`` were decided by.
    """

    written_by = "analyze"

    heads: tuple[HeadName, ...]
    measures: tuple[Measure, ...]
    undefined: dict[str, str] = {}
    thresholds: dict[str, str] = {}
    seed: int = 0
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _lists_are_parallel(self) -> "Roles":
        for one in self.measures:
            lists = (one.values, one.low, one.high, one.baseline, one.passes)
            if {*map(len, lists), len(one.queries), len(one.examples)} != {len(self.heads)}:
                raise ValueError(f"the lists of {one.role} haven't the length of heads")
        return self

    def heads_with(self, role: str) -> tuple[HeadId, ...]:
        """Return the heads that have a role, in the model's order."""
        having = [one.passes for one in self.measures if one.role == role]
        return tuple(
            head for index, head in enumerate(self.heads) if any(one[index] for one in having)
        )

    def is_undecided(self, role: str) -> bool:
        """Whether no head is known to have a role, nor to lack it: too few queries, or a threshold out of reach."""
        having = [one.passes for one in self.measures if one.role == role]
        return all(verdict is None for passes in having for verdict in passes)

    @property
    def names(self) -> tuple[str, ...]:
        """The roles that were measured, in the catalogue's order."""
        return tuple(dict.fromkeys(one.role for one in self.measures))

    def fates(self, removed: Collection[HeadId]) -> RoleFates:
        """Return what becomes of the heads of every role that a rule decides."""
        fates = {
            name: RoleFate(removed=(), kept=self.heads_with(name))
            for name in self.names
            if name in self.thresholds
        }
        whole = RoleFates(removed=0, total=len(self.heads), by_role=fates, data=self.data)
        return whole.given(removed)

    def by_head(self) -> dict[HeadId, tuple[str, ...]]:
        """Return the roles of each head, in the catalogue's order."""
        found: dict[HeadId, dict[str, None]] = {head: {} for head in self.heads}
        for one in self.measures:
            for head, verdict in zip(self.heads, one.passes, strict=True):
                if verdict:
                    found[head][one.role] = None
        return {head: tuple(names) for head, names in found.items()}

    def of_head(self, head: HeadId) -> tuple[str, ...]:
        """Return the roles of a head, in the catalogue's order."""
        return self.by_head().get(head, ())

    def __repr__(self) -> str:
        """In a line: the document is ``to_json()``."""
        return f"<Roles: {len(self.names)} roles of {len(self.heads)} heads>"

    def __str__(self) -> str:
        """What they were measured on, and who has which."""
        n = f", n = {self.data['n']:,}" if "n" in self.data else ""
        lines = [f"{len(self.names)} roles of {len(self.heads)} heads{n}"]
        for name in self.names:
            if name in self.thresholds:
                heads = self.heads_with(name)
                more = f" and {len(heads) - _SHOWN} more" if len(heads) > _SHOWN else ""
                shown = ", ".join(map(str, heads[:_SHOWN])) or "no head"
                lines.append(f"{name} ({self.thresholds[name]}): {shown}{more}")
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        cells = {}
        for head, names in self.by_head().items():
            step = min(2 * len(names), len(COLOURS) - 1)
            cells[head] = (COLOURS[step], ", ".join(names) or "no role")
        return head_map(str(self).splitlines()[0] + "; the lighter, the more roles", cells)


def decided(measures: Iterable[Measure]) -> tuple[Measure, ...]:
    """Return the measures with ``passes``, by the rule of their role's row.

    A head passes a published threshold (or margin above its baseline) if its value is above it, or ``top`` if it is among that
    share of all heads. Its whole interval must lie above the baseline, too: on short rows uniform attention passes some.
    Where the baseline is the most that can be reached (entropy) and the threshold lies above, heads are undecided.
    """
    return tuple(
        one.model_copy(update={"passes": _passes(ROLES[one.role], one)}) for one in measures
    )


def _passes(role: Role, measure: Measure) -> tuple[bool | None, ...]:
    highest = _highest(measure.values, role.top) if role.top is not None else set()
    return tuple(
        _verdict(role, measure, index, is_highest=index in highest)
        for index in range(len(measure.values))
    )


def _verdict(role: Role, measure: Measure, index: int, *, is_highest: bool) -> bool | None:
    value, low, baseline = measure.values[index], measure.low[index], measure.baseline[index]
    if not role.rule or value is None or measure.queries[index] < role.least:
        return None
    if role.is_ceiling:
        out_of_reach = baseline is not None and baseline <= (role.threshold or 0)
        return None if out_of_reach else value > (role.threshold or 0)
    surely = baseline is None or (value if low is None else low) > baseline
    if role.top is not None:
        return is_highest and surely
    if role.margin is not None:
        return baseline is not None and value > baseline + role.margin
    return value > (role.threshold or 0) and surely


def _highest(values: Sequence[float | None], share: float) -> set[int]:
    """Return the places of the highest share of the values, at least one."""
    there = [index for index, value in enumerate(values) if value is not None]
    there.sort(key=lambda index: -(values[index] or 0.0))
    return set(there[: max(1, ceil(share * len(there)))])
