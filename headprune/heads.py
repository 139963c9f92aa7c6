"""Heads, masks, scores and plans as values: index arithmetic and JSON. Knows no model, imports no torch.

A *site* is one attention of the model; a *head* is named by its site and its **original** index, which it keeps for ever,
however often the model is pruned again. Where a model has one stack, the stack is left out: ``L3``, ``L3.H7``;
else ``encoder.L3.H7``, and cross-attention is ``decoder.L2.cross.H7``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    model_validator,
)

from headprune.artefact import Artefact
from headprune.errors import PlanError

_SITE = re.compile(
    r"(?:(?P<stack>[a-z][a-z0-9_]*)\.)?L(?P<layer>\d+)(?:\.(?P<kind>[a-z][a-z0-9_]*))?"
)
_HEAD = re.compile(rf"(?P<site>{_SITE.pattern})\.H(?P<head>\d+)")


class SiteId(NamedTuple):
    """One attention: ``SiteId("", 3, "self")`` prints as ``L3``."""

    stack: str
    layer: int
    kind: str = "self"

    def __str__(self) -> str:
        stack = f"{self.stack}." if self.stack else ""
        return f"{stack}L{self.layer}" + ("" if self.kind == "self" else f".{self.kind}")

    @classmethod
    def parse(cls, name: str) -> "SiteId":
        """Read a name such as ``L3`` or ``decoder.L2.cross``.

        >>> SiteId.parse("decoder.L2.cross")
        SiteId(stack='decoder', layer=2, kind='cross')
        """
        found = _SITE.fullmatch(name)
        if not found:
            raise PlanError(
                f"{name!r} is not the name of an attention",
                where="site name",
                hint="write it like L3, encoder.L3 or decoder.L2.cross (layers count from 0)",
            )
        return cls(found["stack"] or "", int(found["layer"]), found["kind"] or "self")


class HeadId(NamedTuple):
    """One head, by its original 0-based index: prints as ``L3.H7``."""

    site: SiteId
    head: int

    def __str__(self) -> str:
        return f"{self.site}.H{self.head}"

    @classmethod
    def parse(cls, name: str) -> "HeadId":
        """Read a name such as ``L3.H7``.

        >>> str(HeadId.parse("encoder.L3.H7"))
        'encoder.L3.H7'
        """
        found = _HEAD.fullmatch(name)
        if not found:
            raise PlanError(
                f"{name!r} is not the name of a head",
                where="head name",
                hint="write it like L3.H7 (layer and head count from 0)",
            )
        return cls(SiteId.parse(found["site"]), int(found["head"]))


HeadSelection: TypeAlias = Iterable[str | HeadId] | Mapping[str, Iterable[int]]
"""Heads as a user writes them: ``["L0.H1"]``, HeadIds, or ``{"L0": [1, 3]}``."""


def select_heads(selection: HeadSelection, known: Sequence[HeadId]) -> tuple[HeadId, ...]:
    """Turn a user's selection into the heads it names, in the order of ``known``.

    Raises:
        PlanError: A head is named that is not in ``known``.
    """
    named: set[HeadId]
    if isinstance(selection, Mapping):
        named = {
            HeadId(SiteId.parse(site), index)
            for site, heads in selection.items()
            for index in heads
        }
    else:
        named = {head if isinstance(head, HeadId) else HeadId.parse(head) for head in selection}
    unknown = named - set(known)
    if unknown:
        layers = sorted({str(head.site) for head in known}, key=lambda name: SiteId.parse(name))
        raise PlanError(
            f"the model has no head {', '.join(str(head) for head in sorted(unknown))}",
            where="selection of heads",
            hint=f"it has {len(known)} heads in {layers[0]} to {layers[-1]}, such as {known[0]}"
            if known
            else "it has no head that can be pruned",
        )
    return tuple(head for head in known if head in named)


def _head_from_json(value: object) -> object:
    try:
        return HeadId.parse(value) if isinstance(value, str) else value
    except PlanError as error:  # so that the file it stands in is named
        raise ValueError(error.what) from error


HeadName: TypeAlias = Annotated[HeadId, BeforeValidator(_head_from_json), PlainSerializer(str)]


class Steps(BaseModel):
    """How heads were scored in steps: some went, and the others were scored again.

    Args:
        count: How many steps there were.
        keep: The keep ratio that they led to.
        heads: The number of heads that they led to instead, if any.
        constraints: What each step kept to.
        went: The step in which each head went, parallel to the scores; 0 for those that stayed.
        reconstructed: How what was left was reconstructed before it was scored again, where it could be; None: not at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    keep: float
    heads: int | None = None
    constraints: dict[str, Any]
    went: tuple[int, ...]
    reconstructed: str | None = None

    @property
    def budget(self) -> str:
        """How the command line asks for that cut."""
        return f"--keep {self.keep}" if self.heads is None else f"--heads {self.heads}"


class HeadScores(Artefact):
    """The importance of every head (higher matters more), with what it was measured on.

    ``values``, ``standard_errors`` and ``heads`` are parallel; ``standard_errors`` is None for methods that don't sample.
    ``rows`` are keyed hashes of the inputs that were scored, so that they can be kept out of any report (on this machine alone:
    nobody else can compare them with a text). ``metric`` and its direction are there where it is the objective. ``steps`` is
    there where heads went step by step, each with the value that it had when it went. ``products`` are, attention by attention,
    the mean products of the derivatives of two heads, where the method has them.
    """

    written_by = "score"

    method: str
    normalize: Literal["none", "layer", "standard"] = "none"
    objective: str = "loss"
    metric: str | None = None
    higher_is_better: bool | None = None
    heads: tuple[HeadName, ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...] | None = None
    n: int
    seed: int
    products: dict[str, tuple[tuple[float, ...], ...]] | None = None
    rows: tuple[str, ...] = ()
    steps: Steps | None = None
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _lists_are_parallel(self) -> "HeadScores":
        lengths = {len(self.heads), len(self.values)}
        if self.standard_errors is not None:
            lengths.add(len(self.standard_errors))
        if self.steps is not None:
            lengths.add(len(self.steps.went))
        if len(lengths) > 1:
            raise ValueError("heads, values and standard_errors must have the same length")
        if len(set(self.heads)) != len(self.heads):
            raise ValueError("a head is listed twice")
        return self

    def by_head(self) -> dict[HeadId, float]:
        """The score of each head."""
        return dict(zip(self.heads, self.values, strict=True))

    def importance(self) -> dict[HeadId, float]:
        """What plans go by: the scores; those of heads that went step by step lie below all others, the first to go lowest."""
        if self.steps is None:
            return self.by_head()
        span = max(self.values) - min(self.values) or 1.0
        lowered = (
            value - 2 * span * (self.steps.count + 1 - step if step else 0)
            for value, step in zip(self.values, self.steps.went, strict=True)
        )
        return dict(zip(self.heads, lowered, strict=True))

    def ranked(self) -> tuple[HeadId, ...]:
        """Heads from least to most important; ties keep the model's order."""
        importance = self.importance()
        return tuple(sorted(self.heads, key=importance.__getitem__))


class PruningPlan(Artefact):
    """Which heads go, and why. Pure: it can be read, edited (without its checksum, then), reviewed and applied later.

    ``budget`` is what was asked and what it came to; ``constraints`` are the settings that shaped the plan;
    ``reasons`` has a sentence for each head whose fate was not decided by its score alone.
    """

    written_by = "prune"

    remove: tuple[HeadName, ...]
    kept_per_site: dict[str, int]
    budget: dict[str, Any] = {}
    constraints: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    model: dict[str, Any] = {}
