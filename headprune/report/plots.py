"""Pictures: curves with bands, named where they end, in colours that the colour-blind tell apart."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headprune.results import Curve, Sweep, SweepPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito 2008, without the yellow that is too light for a line; shapes and dashes for what has no colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_GREY = "#555555"
_SIZE = (8.0, 4.6)
# Of neighbouring names, as a share of the axis's height.
_LINE = 0.062


def sweep_picture(sweep: Sweep, *, kind: Literal["png", "svg"]) -> bytes:
    """Draw the metric against the share of heads kept, one curve with its 95 % band per method.

    The same sweep makes the same bytes: no date, no random names, whatever the user's own matplotlib settings are.
    """
    from matplotlib.figure import Figure

    with _own_style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for place, curve in enumerate(sweep.curves):
            _draw_curve(axes, curve, place)
        _draw_limits(axes, sweep)
        _label_axes(axes, sweep)
        _name_curves(axes, sweep)
        written = io.BytesIO()
        metadata: dict[str, Any] = {
            "svg": {"Date": None, "Creator": None},
            "png": {"Software": None},
        }[kind]
        figure.savefig(written, format=kind, dpi=160, metadata=metadata)
    return written.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw by matplotlib's defaults and these settings, and leave the user's as they were."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": "headprune",
                "svg.fonttype": "path",
                "font.size": 10.5,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": _GREY,
                "axes.labelcolor": _GREY,
                "xtick.color": _GREY,
                "ytick.color": _GREY,
            }
        )
        yield


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _draw_curve(axes: "Axes", curve: Curve, place: int) -> None:
    shares = [point.share for point in curve.points]
    axes.fill_between(
        shares,
        [point.interval[0] for point in curve.points],
        [point.interval[1] for point in curve.points],
        color=_colour(place),
        alpha=0.13,
        linewidth=0,
    )
    axes.plot(
        shares,
        [point.value for point in curve.points],
        color=_colour(place),
        linestyle=_DASHES[place // len(_COLOURS) % len(_DASHES)],
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4.5,
        linewidth=1.8,
    )
    if curve.knee is not None:
        _mark(axes, curve.at(curve.knee), "o", 13, place)
    if curve.within_drop is not None:
        _mark(axes, curve.at(curve.within_drop), "s", 11, place)


def _mark(axes: "Axes", point: SweepPoint, marker: str, size: int, place: int) -> None:
    axes.plot(
        [point.share],
        [point.value],
        marker=marker,
        markersize=size,
        markerfacecolor="none",
        markeredgecolor=_colour(place),
        markeredgewidth=1.6,
    )


def _allowed(sweep: Sweep) -> float | None:
    """Return the metric at the largest drop that is allowed."""
    if sweep.max_drop is None:
        return None
    sign = -1 if sweep.higher_is_better else 1
    return sweep.whole.value + sign * sweep.max_drop


def _draw_limits(axes: "Axes", sweep: Sweep) -> None:
    axes.axhline(sweep.whole.value, color=_GREY, linewidth=0.9, linestyle=(0, (5, 3)), zorder=0)
    allowed = _allowed(sweep)
    if allowed is not None:
        axes.axhline(allowed, color=_GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def _label_axes(axes: "Axes", sweep: Sweep) -> None:
    from matplotlib.ticker import LogFormatter, PercentFormatter

    if sweep.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    shares = sorted({point.share for curve in sweep.curves for point in curve.points})
    axes.set_xlim(1.02, shares[0] - 0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    where = f" in {', '.join(sweep.constraints['sites'])}" if sweep.constraints["sites"] else ""
    axes.set_xlabel(f"share of the heads that stay{where} ({sweep.num_heads} in all)")
    split = f" ({sweep.data['split']})" if sweep.data.get("split") else ""
    better = "higher" if sweep.higher_is_better else "lower"
    name = Path(sweep.model["name"]).name
    title = f"{sweep.metric} of {name} as heads go"
    axes.set_title(title, loc="left", fontweight="bold", color="#222222", pad=34)
    note = f"{better} is better; n = {sweep.n:,} of {sweep.data['name']}{split}; bands: 95 %\n{_legend(sweep)}"
    text = axes.text(0, 1.025, note, transform=axes.transAxes, color=_GREY, fontsize=9, va="bottom")
    text.set_in_layout(False)  # a long one must not make the axes narrower


def _legend(sweep: Sweep) -> str:
    if sweep.max_drop is None:
        return "ring: knee"
    return f"ring: knee; square: the last whose drop stays within {sweep.max_drop:g}"


def _name_curves(axes: "Axes", sweep: Sweep) -> None:
    """Write each curve's name where it ends, moved apart where they would overlap."""
    names = [(sweep.whole.value, "all heads", _GREY)]
    for place, curve in enumerate(sweep.curves):
        names.append((curve.points[-1].value, curve.method, _colour(place)))
    axes.set_ylim(axes.get_ylim())  # until asked, limits are those of no data
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((1.0, value))[1]) for value, _name, _ in names]
    for height, (_value, name, colour) in zip(spread(wanted, gap=_LINE), names, strict=True):
        axes.text(
            1.015,
            height,
            name,
            transform=axes.transAxes,
            color=colour,
            va="center",
            fontweight="bold",
        )


def spread(wanted: Sequence[float], *, gap: float) -> list[float]:
    """Return the places, at least ``gap`` apart, with the least squared distance to the wanted ones, in the same order.

    >>> [round(place, 6) for place in spread([0.5, 0.5, 0.9], gap=0.1)]
    [0.45, 0.55, 0.9]
    """
    from scipy.optimize import isotonic_regression

    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    free = isotonic_regression([wanted[place] - gap * rank for rank, place in enumerate(order)]).x
    found = dict(zip(order, free, strict=True))
    ranks = {place: rank for rank, place in enumerate(order)}
    return [float(found[place]) + gap * ranks[place] for place in range(len(wanted))]
