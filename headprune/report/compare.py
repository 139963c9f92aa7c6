"""A comparison, on the terminal and in a report: by depth, head by head, what was lost, and what holds in one alone."""

from collections.abc import Iterator
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.text import Text

from headprune.analysis.comparison import BINS, Comparison, Correlation, Lost
from headprune.report.documents import Documents
from headprune.report.parts import Prose, Table
from headprune.report.terminal import Row, Sheet, prose

_IMPORTANCE = "importance:"
_NAMED = 6
"""So many heads of a role are named."""
_WORDS = ("rows", "heads")
"""Last columns of words, which may go on in the next line."""


def comparison(documents: Documents) -> Iterator[Table | Prose]:
    """Yield all of every comparison."""
    for one in documents.of(Comparison):
        yield from _parts(one)


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Show all of a comparison."""
    shown: list[RenderableType] = []
    for part in _parts(comparison):
        shown += [Text()] if shown else []
        if isinstance(part, Prose):
            shown.append(prose(part.text, style="dim"))
            continue
        rows = [Row(cells) for cells in part.rows]
        last = len(part.titles) - 1
        words = last if part.titles[last] in _WORDS else None
        sheet = Sheet(rows, titles=part.titles, right=part.right, prose=words)
        if part.caption != part.titles[0]:
            shown.append(prose(part.caption, style="bold"))
        shown += [sheet] if rows else []
    return Group(*shown)


def _parts(comparison: Comparison) -> Iterator[Table | Prose]:
    rows = []
    for one in comparison.subjects:
        data = ", ".join(f"{name} (n = {n:,})" for name, n in one.data.items())
        rows.append((one.name, one.model, str(one.heads), data))
    titles = ("compared", "model", "heads", "rows")
    yield Table(titles, tuple(rows), right=frozenset({2}), caption=titles[0])
    if comparison.profiles:
        yield from _depths(comparison)
    if comparison.correlations:
        yield _correlations(comparison)
    yield from map(_lost, comparison.lost)
    if comparison.only_in:
        cells = tuple(
            (_shown(one.measure), one.subject, " ".join(map(str, one.heads)))
            for one in comparison.only_in
        )
        alone = "surely in one alone"
        yield Table((alone, "in", "heads"), cells, caption=alone)
    for pair, why in comparison.different.items():
        yield Prose(f"by depth alone: {pair}: {why}")


def _shown(measure: str) -> str:
    return measure.removeprefix(_IMPORTANCE)


def _depths(comparison: Comparison) -> Iterator[Table | Prose]:
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
                rows.append((name, one.subject, *cells))
    ends = ["0", *(f".{edge * 10 // BINS}" for edge in range(1, BINS)), "1"]
    edges = [f"{start}-{end}" for start, end in pairwise(ends)]
    titles = ("by depth", "in", "all", *edges)
    right = frozenset(range(2, len(titles)))
    yield Table(titles, tuple(rows), right=right, caption=titles[0])
    yield Prose(
        "depth: from the first layer, 0, to the last, 1; a role: the share of heads that have it; "
        "a score: the mean rank of heads, from 0 to 1, the most important"
    )


def _correlations(comparison: Comparison) -> Table:
    pairs = list(dict.fromkeys((one.first, one.second) for one in comparison.correlations))
    cells = {(one.measure, one.first, one.second): one for one in comparison.correlations}
    rows = tuple(
        (_shown(measure), *(_correlation(cells.get((measure, *pair))) for pair in pairs))
        for measure in dict.fromkeys(one.measure for one in comparison.correlations)
    )
    titles = ("Spearman", *(f"{first}, {second}" for first, second in pairs))
    return Table(titles, rows, caption="Spearman")


def _correlation(one: Correlation | None) -> str:
    if one is None or one.value is None:
        return "-"
    low, high = one.interval or (None, None)
    return f"{one.value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _lost(lost: Lost) -> Table:
    rows = []
    for name, heads in lost.roles.items():
        named = " ".join(map(str, heads[:_NAMED])) + (" ..." if len(heads) > _NAMED else "")
        rows.append((name, f"{len(heads)} of {lost.having[name]}", named))
    title = f"{lost.second} lacks {len(lost.heads)} heads of {lost.first}"
    return Table(("role", "lacking", "heads"), tuple(rows), caption=title)
