"""The picture of a sweep."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from headprune.report.charts import (
    COLOURS,
    DASHES,
    LINE,
    MARKERS,
    SOFT,
    Chart,
    Drawing,
    numbered,
    picture,
)
from headprune.report.documents import Documents
from headprune.report.numbers import interval, milliseconds, number
from headprune.report.parts import Table
from headprune.results import Curve, Sweep
from headprune.runtime.local import published_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep_picture(sweep: Sweep, *, kind: Literal["png", "svg"]) -> bytes:
    """Draw the metric against the share of heads kept, one curve with its 95 % band per method, that of ``prune`` bold.

    The same sweep makes the same bytes: no date, no random names, whatever the user's own matplotlib settings are.
    """
    return picture(sweep_chart(sweep), kind=kind)


def sweep(documents: Documents) -> Iterator[Chart]:
    """Yield the curves of each sweep."""
    for index, one in enumerate(documents.of(Sweep)):
        yield sweep_chart(one, name=numbered("sweep", index))


def sweep_chart(sweep: Sweep, *, name: str = "sweep") -> Chart:
    """Return the metric against the share of heads kept: a curve with its 95 % band for each method."""
    split = f" ({sweep.data['split']})" if sweep.data.get("split") else ""
    better = "higher" if sweep.higher_is_better else "lower"
    rows = f"n = {sweep.n:,} of {published_name(str(sweep.data.get('name')))}{split}"
    caption = f"{better} is better; {rows}; bands: 95 %; ring: knee"
    if sweep.max_drop is not None:
        caption += f"; square: the last whose drop stays within {sweep.max_drop:g}"
    model = published_name(str(sweep.model.get("name")))
    return Chart(
        name=name,
        title=f"{sweep.metric} of {model} as heads are removed",
        caption=f"{caption[0].upper()}{caption[1:]}.",
        draw=lambda drawing: _draw_sweep(drawing, sweep),
        heights=(440, 380),
        table=_table(sweep),
    )


def _table(sweep: Sweep) -> Table:
    rows = tuple(
        (
            curve.name,
            f"{point.keep:g}",
            str(point.heads),
            "" if point.parameters is None else f"{point.parameters:,}",
            "" if point.latency_ms is None else milliseconds(point.latency_ms),
            number(point.value),
            interval(point.interval),
            number(point.difference, sign="+"),
            interval(point.difference_interval, sign="+"),
        )
        for curve in sweep.curves
        for point in curve.points
    )
    sizes = ("keep", "heads", "parameters", "ms, estimated")
    titles = ("curve", *sizes, sweep.metric, "95 %", "change", "95 %")
    return Table(titles, rows, right=frozenset(range(1, 9)), caption="Every point")


def _draw_sweep(drawing: Drawing, sweep: Sweep) -> None:
    axes = drawing.figure.add_subplot()
    for index, curve in enumerate(sweep.curves):
        _draw_curve(drawing, axes, curve, index)
    _draw_limits(axes, sweep)
    _label_axes(drawing, axes, sweep)
    drawing.name_colours(axes, columns=2 if drawing.is_narrow else 6)


def _draw_curve(drawing: Drawing, axes: "Axes", curve: Curve, index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    shares = [point.share for point in curve.points]
    values = [point.value for point in curve.points]
    low, high = zip(*(point.interval for point in curve.points), strict=True)
    axes.fill_between(shares, low, high, color=colour, alpha=0.13, linewidth=0)
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    width = 1.8 if curve.reconstruct is None else 2.8
    line: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": width}
    axes.plot(
        shares, values, marker=marker, markersize=4.5, label=drawing.short(curve.name), **line
    )
    points = axes.scatter(shares, values, marker=marker, s=24, color=colour, zorder=3)
    drawing.mark(
        points,
        [
            f"{curve.name}, keep {point.keep:g}: {point.heads} heads\n{number(point.value)} {interval(point.interval)}\n"
            f"change {number(point.difference, sign='+')} {interval(point.difference_interval, sign='+')}"
            for point in curve.points
        ],
    )
    within = curve.within_drop if curve.within_drop != 1 else None
    for keep, ring, size in ((curve.knee, "o", 13), (within, "s", 11)):
        if keep is not None:
            point = curve.at(keep)
            axes.plot(point.share, point.value, ring, ms=size, mfc="none", mec=colour, mew=1.6)


def _draw_limits(axes: "Axes", sweep: Sweep) -> None:
    """Draw the whole model's metric, and the worst that is allowed, as lines."""
    line: dict[str, Any] = {"color": SOFT, "linewidth": 0.9, "zorder": 0}
    axes.axhline(sweep.whole.value, linestyle=(0, (5, 3)), label="all heads", **line)
    if sweep.max_drop is not None:
        worse = -sweep.max_drop if sweep.higher_is_better else sweep.max_drop
        axes.axhline(sweep.whole.value + worse, linestyle=(0, (1, 2)), label="allowed", **line)


def _label_axes(drawing: Drawing, axes: "Axes", sweep: Sweep) -> None:
    from matplotlib.ticker import LogFormatter, PercentFormatter

    if sweep.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    smallest = min(point.share for curve in sweep.curves for point in curve.points)
    axes.set_xlim(1.02, smallest - 0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    named = sweep.constraints.get("sites")
    sites = drawing.short(f" in {', '.join(map(str, named))}") if named else ""
    axes.set_xlabel(f"share of the heads kept{sites} ({sweep.num_heads} in all)")
    axes.set_ylabel(drawing.short(sweep.metric))
