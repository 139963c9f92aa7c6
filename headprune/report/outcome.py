"""Before and after: the metric, sizes, proofs, time and memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from headprune.artefact import EvalResult
from headprune.report.charts import COLOURS, SOFT, Chart, Drawing, numbered
from headprune.report.documents import Documents
from headprune.report.numbers import (
    interval,
    milliseconds,
    milliseconds_interval,
    number,
    share,
    timed,
)
from headprune.report.parts import Table
from headprune.results import Results


class _Measured(NamedTuple):
    """A value with its interval, and what is said of it when it is pointed at."""

    label: str
    value: float
    ends: tuple[float, float]
    text: str


def quality(documents: Documents) -> Iterator[Chart | Table]:
    """Yield the metric before and after with its interval, all sizes, and the proofs."""
    for index, results in enumerate(documents.of(Results)):
        if results.before and results.after:
            yield _quality_chart(results, results.after, name=numbered("quality", index))
        yield _sizes(results)
        if results.proofs:
            yield _proofs(results)


def _quality_chart(results: Results, after: EvalResult, *, name: str) -> Chart:
    is_healed = results.heal is not None and results.heal.kept
    named = {
        "before": results.before,
        "cut, before healing": results.cut,
        "after healing" if is_healed else "after pruning": after,
    }
    stages = [(label, one) for label, one in named.items() if one is not None]
    height = 70 * len(stages)
    better = "higher" if after.higher_is_better else "lower"
    rows = [
        _Measured(
            label,
            one.value,
            one.interval,
            f"{label}\n{one.metric} {number(one.value)} {interval(one.interval)}\nn = {one.n:,}",
        )
        for label, one in stages
    ]
    cells = tuple(
        (label, one.metric, number(one.value), interval(one.interval), f"{one.n:,}")
        for label, one in stages
    )
    titles = ("model", "metric", "value", "95 %", "n")
    return Chart(
        name=name,
        title=f"{after.metric}, before and after",
        caption=f"{better.capitalize()} is better. Bars are 95 % intervals, on rows that chose no head.",
        draw=lambda drawing: _draw_intervals(drawing, rows, axis=after.metric),
        heights=(height, height),
        table=Table(titles, cells, right=frozenset({2, 3, 4}), caption="The metric"),
    )


def _sizes(results: Results) -> Table:
    before, after, ends = results.before, results.after, results.difference_interval
    rows: list[tuple[str, ...]] = []
    if before and after and results.difference is not None and ends is not None:
        change = f"{number(results.difference, sign='+')} {interval(ends, sign='+')}"
        values = [f"{number(one.value)} {interval(one.interval)}" for one in (before, after)]
        rows.append((after.metric, *values, change))
    counts = {
        "heads": results.heads,
        "parameters": results.parameters,
        "weights on disk, bytes": results.weights_bytes,
    }
    for name, (first, then) in counts.items():
        known = ("", "") if first is None else (f"{first:,}", share(first, then))
        rows.append((name, known[0], f"{then:,}", known[1]))
    titles = ("", "before", "after", "change")
    return Table(titles, tuple(rows), right=frozenset({1, 2, 3}), caption="Metric and sizes")


def _proofs(results: Results) -> Table:
    rows = tuple(
        (
            proof.name,
            "yes" if proof.passed else "no",
            f"{proof.measured:.3g}",
            f"{proof.limit:.3g}",
            proof.detail,
        )
        for proof in results.proofs
    )
    titles = ("proof", "holds", "measured", "limit", "what was compared")
    return Table(titles, rows, right=frozenset({2, 3}), caption="Proofs")


def speed(documents: Documents) -> Iterator[Chart | Table]:
    """Yield how much longer or shorter forwards take after pruning, and the key/value cache."""
    for index, results in enumerate(documents.of(Results)):
        if results.before and results.after:
            yield from _speed_of(results.before, results.after, name=numbered("speed", index))


def _speed_of(before: EvalResult, after: EvalResult, *, name: str) -> Iterator[Chart | Table]:
    rows, cells = [], []
    for size, took in after.latency_ms.items():
        if size not in before.latency_ms:
            continue
        first = before.latency_ms[size]
        change, ends = first.change_to(took)
        label = timed(size).removeprefix("latency, ")
        words = f"{change:+.0%} [{ends[0]:+.0%}, {ends[1]:+.0%}]"
        rows.append(_Measured(label, change, ends, f"{label}\n{words}"))
        times = (f"{milliseconds(one.ms)} ms {milliseconds_interval(one)}" for one in (first, took))
        cells.append((label, *times, words, took.busy or first.busy))
    if rows:
        titles = ("forward of", "before", "after", "change", "remarks")
        yield Chart(
            name=name,
            title="How much longer a forward takes after pruning",
            caption="Left of the dashed line is faster. Bars go as far as the intervals of both times allow.",
            draw=lambda drawing: _draw_intervals(
                drawing, rows, axis="change of latency", zero=True
            ),
            heights=(72 + 34 * len(rows), 72 + 34 * len(rows)),
            table=Table(
                titles,
                tuple(cells),
                right=frozenset({1, 2, 3}),
                caption="Latency, median of repeats",
            ),
        )
    caches = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if caches[0] is not None and caches[1] is not None:
        sizes = (f"{caches[0]:,} bytes", f"{caches[1]:,} bytes", share(caches[0], caches[1]))
        row = ("key/value cache per token", *sizes)
        yield Table(
            ("", "before", "after", "change"),
            (row,),
            right=frozenset({1, 2, 3}),
            caption="Memory of a key/value cache",
        )


def _draw_intervals(
    drawing: Drawing, rows: Sequence[_Measured], *, axis: str, zero: bool = False
) -> None:
    """Draw each value as a point on its interval; with ``zero``, shares on both sides of a line."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes = drawing.figure.add_subplot()
    if zero:
        axes.axvline(0, color=SOFT, linewidth=0.9, linestyle=(0, (5, 3)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for place, row in enumerate(rows):
        colour = COLOURS[0] if zero or place else SOFT
        axes.plot(row.ends, [place] * 2, color=colour, lw=3, alpha=0.45, solid_capstyle="round")
        point = axes.scatter([row.value], [place], color=colour, s=46, zorder=3)
        drawing.mark(point, [row.text])
    drawing.label_rows(axes, [row.label for row in rows])
    axes.xaxis.set_major_locator(MaxNLocator(4 if drawing.is_narrow else 8))
    axes.grid(axis="x")
    axes.set_xlabel(drawing.short(axis))
