"""The charts of heads: where they are and what becomes of them, what they do, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, nan
from typing import TYPE_CHECKING, Any

from headprune.analysis.catalogue import ROLES
from headprune.heads import COLOURS as STEPS
from headprune.report.charts import (
    COLOURS,
    INK,
    LINE,
    PAPER,
    SOFT,
    WIDTHS,
    Chart,
    Drawing,
    cell_ink,
    numbered,
    square,
)
from headprune.report.documents import Documents
from headprune.report.facts import HeadFacts, Subject, subjects
from headprune.report.parts import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KEPT, _REMOVED = COLOURS[:2]
_LARGEST_CELL = 56.0
_LEAST_LETTERED_CELL = 18
_NAME_WIDTH = 34
"""Pixels that the name of a head needs."""
_GAP = (nan, nan)
"""Where a line ends and the next begins."""
_SIGNS = 2
"""Letters that fit a cell."""
_MANY = 300
"""Heads whose marks must be smaller."""
_NAMED = 12
"""Heads of a role that a table names."""


def heads(documents: Documents) -> Iterator[Chart]:
    """Yield a map of the heads of each plan, or model: layers down, heads across."""
    for index, subject in enumerate(subjects(documents)):
        yield head_map(subject, name=numbered("heads", index))


def head_map(subject: Subject, *, name: str = "heads") -> Chart:
    """Return the map of a model's heads: importance by colour, roles by letters, removed heads crossed out."""
    facts = subject.facts()
    sites = list(dict.fromkeys(str(fact.head.site) for fact in facts))
    removed = sum(bool(fact.is_removed) for fact in facts)
    wide, narrow = (
        round(_cell(facts, sites, width) * len(sites)) + 74 for width in WIDTHS.values()
    )
    parts = (
        "The warmer the colour, the more important the head." if subject.scores else "",
        "A cross marks a removed head." if removed else "",
        _letters(facts),
    )
    scored = f", coloured by their {subject.scores.method} scores" if subject.scores else ""
    planned = f"; {removed} removed" if subject.plan else ""
    return Chart(
        name=name,
        title=f"{len(facts)} heads{scored}{planned}",
        caption=" ".join(filter(None, parts)),
        draw=lambda drawing: _draw_heads(drawing, facts, sites),
        heights=(wide, narrow),
        table=_head_table(facts),
    )


def _letters(facts: Sequence[HeadFacts]) -> str:
    names = dict.fromkeys(role for fact in facts for role in fact.roles or ())
    signs = [f"{ROLES[name].sign} {name}" for name in names if name in ROLES and ROLES[name].sign]
    return f"Letters are roles: {', '.join(signs)}." if signs else ""


def _head_table(facts: Sequence[HeadFacts]) -> Table:
    rows = tuple(
        (
            str(fact.head),
            "" if fact.importance is None else f"{fact.importance:.4g}",
            fact.interval,
            "" if fact.rank is None else str(fact.rank),
            ", ".join(fact.roles or ()),
            fact.fate,
        )
        for fact in facts
    )
    titles = ("head", "importance", "95 %", "rank", "roles", "fate")
    return Table(titles, rows, right=frozenset({1, 2, 3}), caption="Every head")


def _cell(facts: Sequence[HeadFacts], sites: Sequence[str], width: int) -> float:
    """Return how many pixels a head has on each side, beside the names of the layers."""
    names = 24 + 6.5 * max(map(len, sites))
    return min(_LARGEST_CELL, (width - names) / _across(facts))


def _across(facts: Sequence[HeadFacts]) -> int:
    return max(fact.head.head for fact in facts) + 1


def _draw_heads(drawing: Drawing, facts: Sequence[HeadFacts], sites: Sequence[str]) -> None:
    from matplotlib.collections import PolyCollection

    axes = drawing.figure.add_subplot()
    row_of = {site: row for row, site in enumerate(sites)}
    cell = _cell(facts, sites, WIDTHS["narrow" if drawing.is_narrow else "wide"])
    corners, colours, crosses = [], [], []
    for fact in facts:
        x, y = fact.head.head, row_of[str(fact.head.site)]
        corner, colour = square(x, y, gap=0.06), _colour(fact, len(facts))
        corners.append(corner)
        colours.append(colour)
        if fact.is_removed:
            crosses += [corner[0], corner[2], _GAP, corner[1], corner[3], _GAP]
        signs = "".join(ROLES[role].sign for role in fact.roles or () if role in ROLES)
        if signs and cell >= _LEAST_LETTERED_CELL:
            ink = INK if colour in (PAPER, LINE) else cell_ink(colour)
            axes.text(x, y, signs[:_SIGNS], ha="center", va="center", color=ink)
    cells = PolyCollection(corners, facecolors=colours, edgecolors=SOFT, linewidths=cell / 100)
    axes.add_collection(cells)
    if crosses:
        axes.plot(*zip(*crosses, strict=True), color=SOFT, linewidth=cell / 60, alpha=0.5)
    drawing.mark(cells, [fact.text(count=len(facts)) for fact in facts])
    drawing.label_rows(axes, sites, height=cell)
    _label_grid(axes, _across(facts), len(sites), cell=cell)
    if any(fact.rank is not None for fact in facts):
        _draw_scale(axes, len(sites), cell=cell)


def _colour(fact: HeadFacts, count: int) -> str:
    """Return a head's colour, by its rank: a few large scores don't hide the order of the rest."""
    if fact.is_removed:
        return PAPER
    if fact.rank is None:
        return LINE
    return STEPS[min(len(STEPS) - 1, (fact.rank - 1) * len(STEPS) // max(1, count - 1))]


def _label_grid(axes: "Axes", across: int, rows: int, *, cell: float) -> None:
    """Make square cells, and name the heads above them."""
    axes.set_xlim(-0.5, across - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("equal", anchor="NW")
    axes.xaxis.tick_top()
    apart = ceil(_NAME_WIDTH / cell)
    axes.set_xticks(range(0, across, apart), [f"H{head}" for head in range(0, across, apart)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_scale(axes: "Axes", rows: int, *, cell: float) -> None:
    """Show what the colours mean, below the grid, in pixels of a cell."""
    from matplotlib.collections import PolyCollection

    left, top, width, height = -0.45, rows - 0.5 + 12 / cell, 18 / cell, 9 / cell
    corners = [
        [(start, top), (start + width, top), (start + width, top + height), (start, top + height)]
        for start in (left + step * width for step in range(len(STEPS)))
    ]
    axes.add_collection(PolyCollection(corners, facecolors=STEPS, clip_on=False))
    axes.text(left, top + height + 4 / cell, "least to most important", va="top", color=SOFT)


def roles(documents: Documents) -> Iterator[Chart]:
    """Yield how important the heads of each role are, and which of them are removed."""
    having = [subject for subject in subjects(documents) if subject.has_roles]
    for index, subject in enumerate(having):
        yield roles_chart(subject, name=numbered("roles", index))


def roles_chart(subject: Subject, *, name: str = "roles") -> Chart:
    """Return importance against role: a row for each role, a mark for each head that has it."""
    facts = [fact for fact in subject.facts() if fact.roles is not None]
    names = dict.fromkeys(role for fact in facts for role in fact.roles or ())
    groups = {role: [fact for fact in facts if role in (fact.roles or ())] for role in names}
    groups["no role"] = [fact for fact in facts if not fact.roles]
    caption = "A mark is a head. "
    caption += (
        "The further right, the more important." if subject.scores else "From the first layer on."
    )
    caption += " Crosses are removed heads." if subject.plan else ""
    height = 64 + 30 * len(groups)
    return Chart(
        name=name,
        title="Importance of the heads of each role" if subject.scores else "Heads of each role",
        caption=caption,
        draw=lambda drawing: _draw_roles(drawing, facts, groups),
        heights=(height, height),
        table=_role_table(subject, groups),
    )


def _draw_roles(
    drawing: Drawing, facts: Sequence[HeadFacts], groups: Mapping[str, Sequence[HeadFacts]]
) -> None:
    axes = drawing.figure.add_subplot()
    is_ranked = any(fact.rank is not None for fact in facts)
    places = {fact.head: fact.rank or place for place, fact in enumerate(facts, 1)}
    for row, group in enumerate(groups.values()):
        for is_removed, marker, colour in ((False, "o", _KEPT), (True, "x", _REMOVED)):
            some = [fact for fact in group if bool(fact.is_removed) == is_removed]
            across = [places[fact.head] for fact in some]
            style: Any = {
                "marker": marker,
                "color": colour,
                "s": 34 if len(facts) < _MANY else 14,
                "alpha": 0.85,
                "linewidths": 1.6,
            }
            points = axes.scatter(across, [row] * len(some), **style)
            drawing.mark(points, [fact.line for fact in some])
    drawing.label_rows(axes, [f"{role} ({len(group)})" for role, group in groups.items()])
    axes.set_xlim(1 - len(facts) / 60, len(facts) * 61 / 60)
    axes.grid(axis="y")
    axes.set_xlabel("rank of importance (1: least important)" if is_ranked else "heads, in order")


def _role_table(subject: Subject, groups: Mapping[str, Sequence[HeadFacts]]) -> Table:
    rules = subject.roles.thresholds if subject.roles else {}
    rows = []
    for role, group in groups.items():
        ranks = sorted(fact.rank for fact in group if fact.rank is not None)
        names = ", ".join(str(fact.head) for fact in group[:_NAMED])
        rows.append(
            (
                role,
                rules.get(role, ""),
                str(len(group)),
                str(sum(bool(fact.is_removed) for fact in group)) if subject.plan else "",
                str(ranks[len(ranks) // 2]) if ranks else "",
                names + (f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""),
            )
        )
    titles = ("role", "rule", "heads", "removed", "median rank", "which")
    return Table(titles, tuple(rows), right=frozenset({2, 3, 4}), caption="Heads of each role")


def layers(documents: Documents) -> Iterator[Chart]:
    """Yield how many heads every layer keeps and loses; without a plan, how important its heads are."""
    told = [one for one in subjects(documents) if one.plan or one.scores]
    for index, subject in enumerate(told):
        yield layers_chart(subject, name=numbered("layers", index))


def layers_chart(subject: Subject, *, name: str = "layers") -> Chart:
    """Return bars, one for each attention."""
    sites: dict[str, list[HeadFacts]] = {}
    for fact in subject.facts():
        sites.setdefault(str(fact.head.site), []).append(fact)
    title, labels = "Mean importance of the heads of each layer", ["mean importance"]
    bars = {
        site: [sum(fact.importance or 0.0 for fact in some) / len(some)]
        for site, some in sites.items()
    }
    if subject.plan is not None:
        title, labels = "Heads kept and removed in each layer", ["kept", "removed"]
        bars = {
            site: [
                float(sum(bool(fact.is_removed) == gone for fact in some)) for gone in (False, True)
            ]
            for site, some in sites.items()
        }
    height = round(_bar_height(len(bars)) * len(bars)) + 76
    rows = tuple((site, *(f"{value:.4g}" for value in values)) for site, values in bars.items())
    right = frozenset(range(1, 1 + len(labels)))
    return Chart(
        name=name,
        title=title,
        caption="A bar for each attention, from the first layer down.",
        draw=lambda drawing: _draw_layers(drawing, bars, labels),
        heights=(height, height),
        table=Table(("attention", *labels), rows, right=right, caption=title),
    )


def _bar_height(count: int) -> float:
    """Return how many pixels a bar and its gap have."""
    return min(28.0, 1600 / count)


def _draw_layers(
    drawing: Drawing, bars: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> None:
    from matplotlib.collections import PolyCollection

    axes = drawing.figure.add_subplot()
    starts = [0.0] * len(bars)
    for part, (label, colour) in enumerate(zip(labels, (_KEPT, _REMOVED), strict=False)):
        ends = [start + values[part] for start, values in zip(starts, bars.values(), strict=True)]
        corners = [
            [(start, row - 0.36), (end, row - 0.36), (end, row + 0.36), (start, row + 0.36)]
            for row, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        drawn = PolyCollection(corners, facecolors=colour, edgecolors=PAPER, lw=0.8, label=label)
        axes.add_collection(drawn)
        drawing.mark(drawn, [f"{site}\n{label}: {bars[site][part]:.4g}" for site in bars])
        starts = ends
    axes.autoscale_view()
    axes.set_xlim(min(0.0, *starts), max(starts) * 1.01 or 1.0)
    drawing.label_rows(axes, list(bars), height=_bar_height(len(bars)))
    axes.grid(axis="x")
    axes.set_xlabel("heads" if len(labels) > 1 else labels[0])
    if len(labels) > 1:
        drawing.name_colours(axes, columns=len(labels))
