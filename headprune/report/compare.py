"""A comparison on the terminal: by depth, head by head, what was lost, and what holds in one alone."""

from collections.abc import Iterator
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.text import Text

from headprune.analysis.comparison import BINS, Comparison, Correlation, Lost
from headprune.report.terminal import Row, Sheet, prose

_IMPORTANCE = "importance:"
_NAMED = 6
"""So many heads of a role are named."""


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Show all of a comparison."""
    parts: list[RenderableType] = []
    for table in _tables(comparison):
        parts += [Text(), table] if parts else [table]
    return Group(*parts)


def _tables(comparison: Comparison) -> Iterator[RenderableType]:
    rows = []
    for one in comparison.subjects:
        data = ", ".join(f"{name} (n = {n:,})" for name, n in one.data.items())
        rows.append(Row((one.name, one.model, data, str(one.heads))))
    yield Sheet(rows, titles=("", "model", "rows", "heads"), right=frozenset({3}), prose=2)
    if comparison.profiles:
        yield _depths(comparison)
    if comparison.correlations:
        yield _correlations(comparison)
    for lost in comparison.lost:
        yield _lost(lost)
    if comparison.only_in:
        rows = [
            Row((_shown(one.measure), one.subject, " ".join(map(str, one.heads))))
            for one in comparison.only_in
        ]
        yield Sheet(rows, titles=("surely in one alone", "in", "heads"), prose=2)
    for pair, why in comparison.different.items():
        yield prose(f"by depth alone: {pair}: {why}", style="dim")


def _shown(measure: str) -> str:
    return measure.removeprefix(_IMPORTANCE)


def _depths(comparison: Comparison) -> RenderableType:
    rows = []
    having = {one.measure for one in comparison.profiles if one.overall}
    for measure in dict.fromkeys(one.measure for one in comparison.profiles):
        for one in comparison.profiles:
            if one.measure == measure and measure in having:
                is_share = not measure.startswith(_IMPORTANCE)
                cells = [
                    "-" if value is None else f"{value:.0%}" if is_share else f"{value:.2f}"
                    for value in (one.overall, *one.values)
                ]
                name = f"{_shown(measure)} {one.part}".rstrip()
                rows.append(Row((name, one.subject, *cells)))
    ends = ["0", *(f".{edge * 10 // BINS}" for edge in range(1, BINS)), "1"]
    edges = [f"{start}-{end}" for start, end in pairwise(ends)]
    titles = ("by depth", "in", "all", *edges)
    told = (
        "depth: from the first layer, 0, to the last, 1; a role: the share of heads that have it; "
        "a score: the mean rank of heads, from 0 to 1, the most important"
    )
    return Group(
        Sheet(rows, titles=titles, right=frozenset(range(2, len(titles)))),
        prose(f"\n{told}", style="dim"),
    )


def _correlations(comparison: Comparison) -> RenderableType:
    pairs = list(dict.fromkeys((one.first, one.second) for one in comparison.correlations))
    cells = {(one.measure, one.first, one.second): one for one in comparison.correlations}
    rows = [
        Row((_shown(measure), *(_correlation(cells.get((measure, *pair))) for pair in pairs)))
        for measure in dict.fromkeys(one.measure for one in comparison.correlations)
    ]
    titles = ("Spearman", *(f"{first}, {second}" for first, second in pairs))
    return Sheet(rows, titles=titles)


def _correlation(one: Correlation | None) -> str:
    if one is None or one.value is None:
        return "-"
    low, high = one.interval or (None, None)
    return f"{one.value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _lost(lost: Lost) -> RenderableType:
    rows = []
    for name, heads in lost.roles.items():
        named = " ".join(map(str, heads[:_NAMED])) + (" ..." if len(heads) > _NAMED else "")
        rows.append(Row((name, f"{len(heads)} of {lost.having[name]}", named)))
    title = prose(f"{lost.second} lacks {len(lost.heads)} heads of {lost.first}", style="bold")
    table = Sheet(rows, titles=("role", "lacking", "heads"), prose=2)
    return Group(title, table) if rows else title
