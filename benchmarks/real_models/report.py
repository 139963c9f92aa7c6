"""The table for eyes, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.real_models.subject import Law, Report, Round, Sanity
from headprune.placement import versions


def show(reports: Sequence[Report], console: Console) -> None:
    """Print the table of all models, what they write, and every law that doesn't hold."""
    table = Table(title="Real models, pruned", title_justify="left")
    for column in ("model", "keep", "heads", "heads per layer", "parameters", "saved as"):
        table.add_column(column)
    for column in ("masked = pruned", "reloaded", "task", "laws"):
        table.add_column(column)
    for report in reports:
        table.add_row(report.name, "all", *[""] * 6, _numbers(report.base), _held(report.laws))
        for found in report.rounds:
            table.add_row("", *_cells(found))
    console.print(table)
    for report in reports:
        _show_texts(report, console)
    for report in reports:
        _show_failures(report, console)


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "passed": all(report.passed for report in reports),
        "versions": versions(),
        "models": [_model(report) for report in reports],
    }


def _model(report: Report) -> dict[str, Any]:
    rounds = [
        {**asdict(found), "laws": [_law_as_json(law) for law in found.laws]}
        for found in report.rounds
    ]
    laws = [_law_as_json(law) for law in report.laws]
    return {**asdict(report), "passed": report.passed, "laws": laws, "rounds": rounds}


def _law_as_json(law: Law) -> dict[str, Any]:
    return {**asdict(law), "passed": law.passed}


def _cells(found: Round) -> list[str]:
    kept = found.kept_per_site.values()
    measured = {law.name: law.measured for law in found.laws}
    same_bits = not measured["reloaded == pruned"] and not measured["reloaded in a fresh process"]
    return [
        found.keep,
        f"{found.heads[0]} -> {found.heads[1]}",
        f"{min(kept)} to {max(kept)}",
        f"{found.parameters[0] / 1e6:.2f} M -> {found.parameters[1] / 1e6:.2f} M",
        found.route,
        f"{measured['masked == pruned']:.1e}",
        "same bits" if same_bits else "differs",
        _numbers(found.sanity),
        _held(found.laws),
    ]


def _numbers(sanity: Sanity) -> str:
    return "\n".join(f"{name} {value:.4g}" for name, value in sanity.numbers.items())


def _held(laws: Sequence[Law]) -> str:
    held = sum(law.passed for law in laws)
    color = "green" if held == len(laws) else "red"
    return f"[{color}]{held} of {len(laws)}[/]"


def _show_texts(report: Report, console: Console) -> None:
    if not report.base.texts:
        return
    table = Table(title=f"What {report.name} writes", title_justify="left")
    for column in ("asked", "keep", "text"):
        table.add_column(column)
    for name, text in report.base.texts.items():
        table.add_row(escape(name), "all", _in_a_line(text))
        for found in report.rounds:
            said = found.sanity.texts[name]
            table.add_row("", found.keep, "the same" if said == text else _in_a_line(said))
    console.print(table)


def _in_a_line(text: str) -> str:
    return escape(" ".join(text.split()))


def _show_failures(report: Report, console: Console) -> None:
    if report.problem:
        console.print(f"[red]{report.name}[/]: {escape(report.problem)}")
    named = [("all", law) for law in report.laws]
    named += [(found.keep, law) for found in report.rounds for law in found.laws]
    for keep, law in named:
        if not law.passed:
            console.print(
                f"[red]{report.name}[/], keep {keep}: {law.name} does not hold: "
                f"{law.measured:.3g} where {law.limit:.3g} is allowed. {escape(law.detail)}"
            )
