"""Roles of heads on the terminal: a map, and a table of who has which."""

from collections.abc import Callable
from math import inf

from rich.console import Group, RenderableType
from rich.text import Text

from headprune.analysis.catalogue import ROLES
from headprune.analysis.likeness import Compared, Similarity
from headprune.analysis.maps import AttentionView
from headprune.analysis.roles import Measure, Roles
from headprune.heads import HeadId, SiteId
from headprune.report.heads import Grid
from headprune.report.similarity import first_of, group_facts
from headprune.report.terminal import Row, Sheet, key_value_table, prose

_SIGNS = 3
"""Signs that fit a cell of the map."""
_NAMED = 6
"""Heads of a cluster that are named."""
_MANY = 20
"""So many numbers of one role have a table of their own."""


def roles_map(roles: Roles) -> RenderableType:
    """Show the signs of every head's roles as a grid, layers down and heads across."""
    having: dict[HeadId, str] = {head: "" for head in roles.heads}
    for name in roles.names:
        for head in roles.heads_with(name):
            having[head] += ROLES[name].sign if name in ROLES else ""
    cells: dict[SiteId, dict[int, Text]] = {head.site: {} for head in roles.heads}
    for head, signs in having.items():
        text = signs[:_SIGNS] or "·"
        style = "dim" if not signs else ""
        cells[head.site][head.head] = Text(text.center(4), style=style)
    shown = [
        name
        for name in roles.names
        if name in ROLES and ROLES[name].sign and roles.heads_with(name)
    ]
    legend = ", ".join(f"{ROLES[name].sign} {name}" for name in shown)
    return Group(
        Grid(cells), prose(f"\n{legend}" if legend else "\nno head has a role", style="dim")
    )


def roles_table(roles: Roles, rewrite: Callable[[str], str]) -> RenderableType:
    """Show for every role how many heads have it, and the head with the highest number.

    Beside it stand half of its 95 % interval, the baseline, and the rule by which a head has the role. Below are
    roles that weren't measured, with the reason; ``rewrite`` names options in it as the user does.
    """
    rows = []
    for name in roles.names:
        measures = [one for one in roles.measures if one.role == name]
        rule = roles.thresholds.get(name, "")
        best, index = max(
            ((one, head) for one in measures for head in range(len(roles.heads))),
            key=lambda pair: _strength(*pair),
        )
        count = str(len(roles.heads_with(name))) if rule else "-"
        at = f" {best.column}" if best.column and len(measures) < _MANY else ""
        highest = f"{roles.heads[index]}{at}"
        rows.append(Row((name, count, highest, _number(best, index), _baseline(best, index), rule)))
    titles = ("role", f"of {len(roles.heads)}", "highest", "number", "baseline", "rule")
    parts: list[RenderableType] = [Sheet(rows, titles=titles, right=frozenset({1}))]
    if roles.undefined:
        parts.append(Text())
        names: dict[str, list[str]] = {}
        for name, reason in roles.undefined.items():
            names.setdefault(reason, []).append(name)
        parts += [
            prose(f"not measured: {', '.join(alike)}: {rewrite(reason)}", style="dim")
            for reason, alike in names.items()
        ]
    return Group(*parts)


def relations_table(roles: Roles) -> RenderableType | None:
    """Show the best head of every relation and direction of syntax; None where it wasn't measured."""
    rows = []
    for one in roles.measures:
        if one.role == "syntax" and any(verdict is not None for verdict in one.passes):
            index = max(range(len(roles.heads)), key=lambda head: _strength(one, head))
            number, n = _number(one, index), f"{one.queries[index]:,}"
            has = "yes" if one.passes[index] else "no"
            rows.append(
                Row((one.column, str(roles.heads[index]), number, _baseline(one, index), n, has))
            )
    titles = ("relation", "head", "right", "baseline", "n", "role")
    return Sheet(rows, titles=titles, right=frozenset({4})) if rows else None


def _strength(measure: Measure, index: int) -> tuple[bool, bool, float]:
    """Return by what heads are compared: whether the number is decided, whether the head has the role, and the number."""
    value, passes = measure.values[index], measure.passes[index]
    return passes is not None, bool(passes), -inf if value is None else value


def _number(measure: Measure, index: int) -> str:
    value, low, high = measure.values[index], measure.low[index], measure.high[index]
    return "-" if value is None else f"{value:.3g}{_half(low, high)}"


def _half(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ± {(high - low) / 2:.1g}"


def _baseline(measure: Measure, index: int) -> str:
    value = measure.baseline[index]
    return "-" if value is None else f"{value:.3g}"


def similarity_table(similarity: Similarity) -> RenderableType:
    """Show for every head that a plan removes the nearest kept one; without a plan the pairs that are most alike."""
    titles = ("removed", "nearest kept") if similarity.successors else ("head", "most like")
    rows = [
        Row(
            (
                str(one.head),
                str(one.nearest),
                f"{one.divergence:.3g}{_half(one.low, one.high)}",
                f"{one.closer_than:.1%} of pairs",
            )
        )
        for one in similarity.successors or similarity.closest
    ]
    parts: list[RenderableType] = []
    for group in similarity.groups:
        parts += [Text(), _cluster_table(group), prose(f"\n{group_facts(group)}", style="dim")]
    return Group(Sheet(rows, titles=(*titles, "divergence", "closer than")), *parts)


def _cluster_table(group: Compared) -> RenderableType:
    """Show the first heads of every cluster."""
    rows = [
        Row((str(number), str(len(heads)), first_of(heads, _NAMED)))
        for number, heads in group.by_cluster().items()
    ]
    titles = ("cluster", "heads", "which")
    return Sheet(rows, titles=titles, right=frozenset({0, 1}), prose=2)


def view_table(view: AttentionView) -> RenderableType:
    """Show what is in a page of attention."""
    removed = sum(head.is_removed for head in view.heads)
    rows = {
        "attentions": len({one.site for one in view.maps}),
        "heads": f"{len(view.heads)}, {removed} of them removed" if removed else len(view.heads),
    }
    for name, tokens in view.tokens.items():
        text = f"{len(tokens)} tokens"
        text += f" of {view.cut[name]:,}" if name in view.cut else ""
        rows[name] = text + (
            ", written by the model" if view.is_decoded and name == "target" else ""
        )
    rows["importance"] = view.scores.get("method", "not known: --scores FILE")
    rows["roles"] = "shown" if view.roles else "not known: --roles FILE"
    return key_value_table(rows)
