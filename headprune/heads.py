"""Heads by name, and how a user selects them. Knows no model, imports no torch.

A *site* is one attention of the model; a *head* is named by its site and its **original** index, which it keeps for ever,
however often the model is pruned again. Where a model has one stack, the stack is left out: ``L3``, ``L3.H7``;
else ``encoder.L3.H7``, and cross-attention is ``decoder.L2.cross.H7``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from headprune.errors import PlanError

_SITE = re.compile(
    r"(?:(?P<stack>[a-z][a-z0-9_]*)\.)?L(?P<layer>\d+)(?:\.(?P<kind>[a-z][a-z0-9_]*))?"
)
_HEAD = re.compile(rf"(?P<site>{_SITE.pattern})\.H(?P<head>\d+)")


COLOURS = ("#2c3e6b", "#45506f", "#646770", "#848075", "#a59a6c", "#c9b65c", "#f1d53f")
"""From unimportant to important, like Cividis: readable for the colour-blind, on light and on dark."""


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
        match = _SITE.fullmatch(name)
        if not match:
            raise PlanError(
                f"{name!r} is not the name of an attention",
                where="site name",
                hint="write it like L3, encoder.L3 or decoder.L2.cross (layers count from 0)",
            )
        return cls(match["stack"] or "", int(match["layer"]), match["kind"] or "self")


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
        match = _HEAD.fullmatch(name)
        if not match:
            raise PlanError(
                f"{name!r} is not the name of a head",
                where="head name",
                hint="write it like L3.H7 (layer and head count from 0)",
            )
        return cls(SiteId.parse(match["site"]), int(match["head"]))


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


class OneHead(BaseModel):
    """An attention that keeps one head: the one that does best alone.

    Args:
        head: The head, chosen on other examples.
        cost: How much worse the loss (or the metric) is with only it than with all heads of the attention.
        standard_error: Of the cost; None for one example.
        cost_of_none: How much worse it is without any.
        n: Examples that the costs are measured on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    head: HeadName
    cost: float
    standard_error: float | None
    cost_of_none: float
    n: int


def head_map(caption: str, cells: Mapping[HeadId, tuple[str, str]]) -> str:
    """Return a table for a notebook, layers down and heads across."""
    rows: dict[SiteId, list[str]] = {}
    for head, (colour, title) in cells.items():
        rows.setdefault(head.site, []).append(
            f'<td style="background:{colour};width:1.2em" title="{head}: {escape(title)}">&nbsp;</td>'
        )
    body = "".join(f"<tr><th>{site}</th>{''.join(row)}</tr>" for site, row in rows.items())
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"
