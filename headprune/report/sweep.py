"""What ``sweep`` measured, for the terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType

from headprune.report.tables import Row, Sheet, prose
from headprune.report.terminal import as_interval, as_number
from headprune.results import Curve, Sweep, SweepPoint


def sweep_table(sweep: Sweep) -> RenderableType:
    """Show every point with its interval and its paired difference to the whole model, then what is to be seen."""
    rows: list[Row] = []
    for curve in sweep.curves:
        rows += [
            Row((f"scored by {curve.method}",), "bold"),
            *(Row(_cells(point)) for point in curve.points),
        ]
        rows.append(Row(()))
    titles = ("--keep (heads)", sweep.metric, "95 %", "change", "95 %")
    table = Sheet(rows, titles=titles, right=frozenset(range(5)))
    split = f" ({sweep.data['split']})" if sweep.data.get("split") else ""
    better = "higher" if sweep.higher_is_better else "lower"
    notes = prose(
        f"{sweep.metric}: {better} is better; n = {sweep.n:,} of {sweep.data['name']}{split}, rows that chose no head; "
        "masked, nothing cut\n",
        style="dim",
    )
    return Group(table, notes, *(prose(line) for line in _findings(sweep)))


def _cells(point: SweepPoint) -> tuple[str, ...]:
    return (
        f"{point.keep:g} ({point.heads})",
        as_number(point.value),
        as_interval(point.interval),
        as_number(point.difference, sign="+"),
        as_interval(point.difference_interval, sign="+"),
    )


def _findings(sweep: Sweep) -> Iterator[str]:
    for curve in sweep.curves:
        yield f"{curve.method}: {_knee(curve)}{_within(curve, sweep)}"


def _knee(curve: Curve) -> str:
    if curve.knee is None:
        return "no knee"
    point = curve.at(curve.knee)
    return f"knee at --keep {curve.knee:g} ({as_number(point.value)})"


def _within(curve: Curve, sweep: Sweep) -> str:
    if sweep.max_drop is None:
        return ""
    if curve.within_drop is None or curve.within_drop == 1:
        return f"; no cut is surely within a drop of {sweep.max_drop:g}"
    return f"; drop surely within {sweep.max_drop:g} down to --keep {curve.within_drop:g}"
