"""Pictures of sweeps, in colours that the colour-blind tell apart."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headprune.results import Curve, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito 2008, without the yellow that is too light for a line; shapes and dashes for what has no colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_GREY = "#555555"
_STYLE: Any = {
    "svg.hashsalt": "headprune",
    "svg.fonttype": "path",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY),
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def sweep_picture(sweep: Sweep, *, kind: Literal["png", "svg"]) -> bytes:
    """Draw the metric against the share of heads kept, one curve with its 95 % band per method, that of ``prune`` bold.

    The same sweep makes the same bytes: no date, no random names, whatever the user's own matplotlib settings are.
    """
    from matplotlib.figure import Figure

    picture = io.BytesIO()
    with _own_style():
        figure = Figure(figsize=(8.0, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(sweep.curves):
            _draw_curve(axes, curve, index)
        _draw_limits(axes, sweep)
        _label_axes(axes, sweep)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(picture, format=kind, dpi=160, metadata=_NO_DATE[kind])
    return picture.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw by matplotlib's defaults and these settings, and leave the user's as they were."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _draw_curve(axes: "Axes", curve: Curve, index: int) -> None:
    colour = _COLOURS[index % len(_COLOURS)]
    shares = [point.share for point in curve.points]
    low, high = zip(*(point.interval for point in curve.points), strict=True)
    axes.fill_between(shares, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(
        shares,
        [point.value for point in curve.points],
        color=colour,
        linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=4.5,
        linewidth=1.8 if curve.reconstruct is None else 2.8,
        label=curve.name,
    )
    within = curve.within_drop if curve.within_drop != 1 else None
    for keep, marker, size in ((curve.knee, "o", 13), (within, "s", 11)):
        if keep is not None:
            point = curve.at(keep)
            axes.plot(point.share, point.value, marker, ms=size, mfc="none", mec=colour, mew=1.6)


def _draw_limits(axes: "Axes", sweep: Sweep) -> None:
    """Draw the whole model's metric, and the worst that is allowed, as lines."""
    line: dict[str, Any] = {"color": _GREY, "linewidth": 0.9, "zorder": 0}
    axes.axhline(sweep.whole.value, linestyle=(0, (5, 3)), label="all heads", **line)
    if sweep.max_drop is not None:
        worse = -sweep.max_drop if sweep.higher_is_better else sweep.max_drop
        axes.axhline(sweep.whole.value + worse, linestyle=(0, (1, 2)), label="allowed", **line)


def _label_axes(axes: "Axes", sweep: Sweep) -> None:
    from matplotlib.ticker import LogFormatter, PercentFormatter

    if sweep.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    smallest = min(point.share for curve in sweep.curves for point in curve.points)
    axes.set_xlim(1.02, smallest - 0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    sites = f" in {', '.join(sweep.constraints['sites'])}" if sweep.constraints["sites"] else ""
    axes.set_xlabel(f"share of the heads kept{sites} ({sweep.num_heads} in all)")
    title = f"{sweep.metric} of {Path(sweep.model['name']).name} as heads are removed"
    axes.set_title(title, loc="left", fontweight="bold", color="#222222", pad=34)
    split = f" ({sweep.data['split']})" if sweep.data.get("split") else ""
    better = "higher" if sweep.higher_is_better else "lower"
    note = f"{better} is better; n = {sweep.n:,} of {sweep.data['name']}{split}; bands: 95 %\nring: knee"
    if sweep.max_drop is not None:
        note += f"; square: the last whose drop stays within {sweep.max_drop:g}"
    text = axes.text(0, 1.025, note, transform=axes.transAxes, color=_GREY, fontsize=9, va="bottom")
    text.set_in_layout(False)  # a long one must not make the axes narrower
