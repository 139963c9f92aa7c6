"""Who was right: how far the orders of several scores agree, and whose cuts did best."""

from collections.abc import Iterator, Sequence

from headprune.heads import COLOURS as STEPS
from headprune.plans import HeadScores
from headprune.report.charts import INK, LINE, Chart, Drawing, cell_ink, numbered, square
from headprune.report.documents import Documents
from headprune.report.heads import rank_correlations
from headprune.report.numbers import number
from headprune.report.parts import Table
from headprune.results import Curve, Sweep


def methods(documents: Documents) -> Iterator[Chart | Table]:
    """Yield how far the orders of scores of the same heads agree, and whose cuts did best in each sweep."""
    groups: dict[frozenset[object], list[HeadScores]] = {}
    for scores in documents.of(HeadScores):
        groups.setdefault(frozenset(scores.heads), []).append(scores)
    for index, group in enumerate(group for group in groups.values() if len(group) > 1):
        yield agreement_chart(group, name=numbered("methods", index))
    for sweep in documents.of(Sweep):
        if len(sweep.curves) > 1:
            yield contest(sweep)


def agreement_chart(group: Sequence[HeadScores], *, name: str = "methods") -> Chart:
    """Return Spearman's rank correlation of every two scores of the same heads."""
    labels = [_label(scores) for scores in group]
    correlations = rank_correlations(group)
    rows = tuple(
        (label, *("" if value is None else f"{value:.2f}" for value in row))
        for label, row in zip(labels, correlations, strict=True)
    )
    height = 60 + 36 * len(group)
    return Chart(
        name=name,
        title="How far the orders of the scores agree",
        caption="Spearman's rank correlation: 1 is the same order, 0 is none in common. Columns are the rows, by number.",
        draw=lambda drawing: _draw_agreement(drawing, labels, correlations),
        heights=(height, height),
        table=Table(
            ("", *labels),
            rows,
            right=frozenset(range(1, 1 + len(labels))),
            caption="Rank correlation of every two scores",
        ),
    )


def _label(scores: HeadScores) -> str:
    steps = f", {scores.steps.count} steps" if scores.steps else ""
    rows = f", n = {scores.n:,}" if scores.n else ""
    return f"{scores.method}{steps}{rows}"


def _draw_agreement(
    drawing: Drawing, labels: Sequence[str], correlations: Sequence[Sequence[float | None]]
) -> None:
    from matplotlib.collections import PolyCollection

    axes = drawing.figure.add_subplot()
    corners, colours, texts = [], [], []
    for y, row in enumerate(correlations):
        for x, value in enumerate(row):
            step = None if value is None else int(max(0.0, value) * (len(STEPS) - 1))
            corners.append(square(x, y, gap=0.03))
            colours.append(LINE if step is None else STEPS[step])
            words = "no order" if value is None else f"correlation {value:.3f}"
            texts.append(f"{labels[y]}\n{labels[x]}\n{words}")
            ink = INK if step is None else cell_ink(STEPS[step])
            shown = "-" if value is None else f"{value:.2f}"
            axes.text(x, y, shown, ha="center", va="center", color=ink)
    drawn = PolyCollection(corners, facecolors=colours, edgecolors="none")
    axes.add_collection(drawn)
    drawing.mark(drawn, texts)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    places = [str(place) for place in range(1, 1 + len(labels))]
    axes.set_xticks(range(len(labels)), places)
    named = [
        drawing.short(f"{place}: {label}") for label, place in zip(labels, places, strict=True)
    ]
    axes.set_yticks(range(len(labels)), named)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def contest(sweep: Sweep) -> Table:
    """Return whose cuts have the best metric, as the mean over the points that all curves have, the whole model left out."""
    kept = [{point.keep for point in curve.points} for curve in sweep.curves]
    shared = set.intersection(*kept) - {1.0}

    def mean(curve: Curve) -> float:
        values = [point.value for point in curve.points if point.keep in shared]
        return sum(values) / len(values) if values else sweep.whole.value

    ordered = sorted(sweep.curves, key=mean, reverse=sweep.higher_is_better)
    rows = tuple(
        (
            curve.name,
            number(mean(curve)),
            "none" if curve.knee is None else f"{curve.knee:g}",
        )
        for curve in ordered
    )
    titles = ("curve", f"mean {sweep.metric} of {len(shared)} cuts", "knee at keep")
    return Table(
        titles, rows, right=frozenset({1, 2}), caption="Whose cuts did best, the best first"
    )
