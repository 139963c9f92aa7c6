"""What ``sweep`` measured, for the terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headprune.report.terminal import as_interval, as_number
from headprune.results import Curve, Sweep, SweepPoint


def sweep_table(sweep: Sweep) -> RenderableType:
    """Show every point with its interval and its paired difference to the whole model, then what is to be seen."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("scored by", "heads kept", sweep.metric, "95 %", "change", "95 %"):
        table.add_column(title, justify="left" if title == "scored by" else "right", no_wrap=True)
    for curve in sweep.curves:
        for place, point in enumerate(curve.points):
            name = curve.method if place == 0 else ""
            table.add_row(name, *_cells(point))
        table.add_row()
    split = f" ({sweep.data['split']})" if sweep.data.get("split") else ""
    better = "higher" if sweep.higher_is_better else "lower"
    notes = Text(
        f"{sweep.metric}: {better} is better; n = {sweep.n:,} of {sweep.data['name']}{split}, rows that chose no head; "
        "masked, nothing cut\n",
        style="dim",
    )
    return Group(table, notes, *(Text(line) for line in _findings(sweep)))


def _cells(point: SweepPoint) -> tuple[str, ...]:
    return (
        f"{point.share:.0%} ({point.heads})",
        as_number(point.value),
        as_interval(point.interval),
        as_number(point.difference, sign="+"),
        as_interval(point.difference_interval, sign="+"),
    )


def _findings(sweep: Sweep) -> Iterator[str]:
    for curve in sweep.curves:
        yield f"{curve.method}: {_knee(curve, sweep)}{_within(curve, sweep)}"


def _knee(curve: Curve, sweep: Sweep) -> str:
    if curve.knee is None:
        return "no knee"
    point = curve.at(curve.knee)
    return f"knee at --keep {curve.knee:g} ({point.heads} heads, {sweep.metric} {as_number(point.value)})"


def _within(curve: Curve, sweep: Sweep) -> str:
    if sweep.max_drop is None:
        return ""
    if curve.within_drop is None or curve.within_drop == 1:
        return f"; no cut of these surely stays within a drop of {sweep.max_drop:g}"
    return f"; within a drop of {sweep.max_drop:g} down to --keep {curve.within_drop:g}"
