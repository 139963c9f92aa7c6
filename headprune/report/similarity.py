"""How alike heads are: a map of them, coloured by cluster."""

from collections.abc import Iterator, Sequence

from headprune.analysis.likeness import Compared, Pair, Similarity
from headprune.heads import HeadId
from headprune.report.charts import COLOURS, MARKERS, SOFT, Chart, Drawing, numbered
from headprune.report.documents import Documents
from headprune.report.parts import Table

_HEIGHT = 460
_NAMED = 12
"""Heads of a cluster that are named."""


def similarity(documents: Documents) -> Iterator[Chart | Table]:
    """Yield a map of the heads of each stack, with who is in which cluster, and which heads are most alike."""
    index = 0
    for one in documents.of(Similarity):
        for group in one.groups:
            yield similarity_chart(group, name=numbered("similarity", index))
            index += 1
        if one.closest:
            yield _pairs(one.closest, ("head", "most like"), "Heads that are most alike")
        if one.successors:
            titles = ("removed", "nearest kept")
            yield _pairs(one.successors, titles, "The kept head nearest to each removed one")


def similarity_chart(group: Compared, *, name: str = "similarity") -> Chart:
    """Return the map of heads that were compared, a colour and shape for each cluster."""
    clusters = group.by_cluster()
    rows = tuple(
        (str(number), str(len(heads)), first_of(heads, _NAMED))
        for number, heads in clusters.items()
    )
    titles = ("cluster", "heads", "which")
    return Chart(
        name=name,
        title=f"How alike {len(group.heads)} heads are, in {len(clusters)} clusters",
        caption=f"A mark is a head, a colour and shape a cluster; the map shows {group.explained:.0%} of the squared distances. "
        f"{group_facts(group)}.",
        draw=lambda drawing: _draw(drawing, group),
        heights=(_HEIGHT, _HEIGHT),
        table=Table(titles, rows, right=frozenset({0, 1}), caption="Clusters of heads"),
    )


def first_of(heads: Sequence[HeadId], most: int) -> str:
    """Return the names of the first heads, and how many more there are."""
    more = f" and {len(heads) - most} more" if len(heads) > most else ""
    return ", ".join(map(str, heads[:most])) + more


def group_facts(group: Compared) -> str:
    """Return how alike heads of a group usually are, and on what that was measured."""
    return (
        f"{group.heads[0]} to {group.heads[-1]}: median divergence {group.median():.3g} nats "
        f"(at most 0.693), n = {group.examples:,}"
    )


def _draw(drawing: Drawing, group: Compared) -> None:
    axes = drawing.figure.add_subplot()
    place = dict(zip(group.heads, group.positions, strict=True))
    for number, heads in group.by_cluster().items():
        points = axes.scatter(
            [place[head][0] for head in heads],
            [place[head][1] for head in heads],
            color=COLOURS[(number - 1) % len(COLOURS)],
            # Beyond the last colour, the same colours have other shapes.
            marker=MARKERS[(number - 1 + (number - 1) // len(COLOURS)) % len(MARKERS)],
            s=34,
            alpha=0.85,
            label=f"{number}",
        )
        texts = [f"{head}\ncluster {number}, of {len(heads)} heads" for head in heads]
        drawing.mark(points, texts)
    axes.set_aspect("equal", adjustable="datalim")
    axes.axhline(0, color=SOFT, linewidth=0.4, zorder=0)
    axes.axvline(0, color=SOFT, linewidth=0.4, zorder=0)
    axes.set_xlabel("the nearer, the more alike (square root of nats)")
    drawing.name_colours(axes, columns=6 if drawing.is_narrow else 12)


def _pairs(pairs: tuple[Pair, ...], titles: tuple[str, str], caption: str) -> Table:
    rows = tuple(
        (
            str(one.head),
            str(one.nearest),
            f"{one.divergence:.3g}",
            _ends(one),
            f"{one.closer_than:.1%}",
        )
        for one in pairs
    )
    more = ("divergence, nats", "95 %", "closer than, of pairs")
    return Table((*titles, *more), rows, right=frozenset({2, 3, 4}), caption=caption)


def _ends(one: Pair) -> str:
    return "" if one.low is None or one.high is None else f"[{one.low:.3g}, {one.high:.3g}]"
