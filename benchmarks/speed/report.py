"""Tables for eyes, and everything as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.speed.compare import Comparison
from benchmarks.speed.linear import Point
from benchmarks.speed.memory import Child, Memory
from benchmarks.speed.profiling import Operator
from benchmarks.speed.targets import Verdict


def show_comparison(found: Comparison, console: Console, *, peak: float) -> None:
    """Print one subject: a line for every method."""
    table = Table(title=escape(f"{found.name}: {found.about}"), title_justify="left")
    table.add_column("method")
    for column in (
        *("seconds", "x naive", "x reference", "forwards", "GFLOP/s", "of peak", "difference"),
    ):
        table.add_column(column, justify="right")
    extrapolated = found.naive_heads < found.heads
    for label, seconds, guessed, difference in (
        ("naive", found.naive, extrapolated, None),
        ("reference", found.reference, True, found.reference_difference),
        ("ours", found.ours, False, found.difference),
        ("ours, without what is done once", found.ours_by_rows, False, None),
    ):
        rate = found.flops / seconds
        table.add_row(
            label,
            f"{'~' if guessed else ''}{seconds:.2f}",
            f"{found.naive / seconds:.2f}",
            f"{found.reference / seconds:.2f}",
            f"{seconds / found.forward:.1f}",
            f"{rate / 1e9:.1f}",
            f"{rate / peak:.0%}",
            "" if difference is None else f"{difference:.1e}",
        )
    console.print(table)
    for line in _notes(found, peak):
        console.print(line, markup=False, highlight=False)
    console.print()


def _notes(found: Comparison, peak: float) -> list[str]:
    dynamic, padded = (
        found.tokens / found.examples,
        found.reference_tokens / found.reference_examples,
    )
    full = ""
    if found.flops < found.flops_full:
        share = found.flops_full / found.ours / peak
        full = f" Of the last block, only what the loss reads is counted; counted in full, ours is at {share:.0%} of the peak."
    return [
        f"  All {found.heads} heads x {found.examples} examples. ~ is extrapolated: naive ran {found.naive_heads} heads, the "
        f"reference {found.reference_heads} heads on {found.reference_examples} examples; a head costs both the same "
        "wherever it is.",
        f"  Tokens an example, padding included: {dynamic:.1f}, reference {padded:.1f}. The reference is spared a process "
        "start per head, which flatters it.",
        f"  A forward: {found.forward:.3f} s. Gradient scores: {min(found.samples.gradient):.3f} s = "
        f"{found.gradient_forwards:.2f} forwards. Trying out routes, once a run: {min(found.samples.ours_once):.2f} s.",
        f"  GFLOP/s count the least operations ({found.flops / 1e9:.0f} GFLOP), whatever a method really does; peak "
        f"{peak / 1e9:.1f} GFLOP/s.{full}",
    ]


def show_linear(points: Sequence[Point], console: Console) -> None:
    """Print seconds by rows and tokens."""
    table = Table(title="Linear cost: ours on the random BERT, some heads", title_justify="left")
    for column in ("rows", "tokens a row", "seconds", "us per row x token", "once a run, s"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            str(point.rows),
            str(point.length),
            f"{point.seconds:.3f}",
            f"{point.per_token * 1e6:.1f}",
            f"{point.once:.3f}",
        )
    console.print(table)
    costs = [point.per_token for point in points]
    console.print(f"  largest / smallest: {max(costs) / min(costs):.2f}\n", highlight=False)


def show_memory(found: Memory, console: Console) -> None:
    """Print the peaks."""
    table = Table(title=f"Peak memory, {found.subject}, MB", title_justify="left")
    table.add_column("process")
    for column in ("rows", "libraries", "with the model", "peak", "peak without libraries"):
        table.add_column(column, justify="right")
    for label, rows, child in (
        ("plain evaluation", found.rows, found.evaluation),
        ("ablation", found.rows, found.ablation),
        ("ablation", 2 * found.rows, found.doubled),
    ):
        table.add_row(label, str(rows), *_megabytes(child))
    console.print(table)
    console.print()


def _megabytes(child: Child) -> list[str]:
    numbers = (child.imports, child.loaded, child.peak, child.own)
    return [f"{number / 1e6:.0f}" for number in numbers]


def show_profile(name: str, operators: Sequence[Operator], console: Console) -> None:
    """Print the operators that take the time."""
    table = Table(title=f"Where the time goes: one batch of ours, {name}", title_justify="left")
    table.add_column("operator")
    for column in ("calls", "seconds of its own", "share"):
        table.add_column(column, justify="right")
    for operator in operators:
        table.add_row(
            escape(operator.name),
            str(operator.calls),
            f"{operator.seconds:.3f}",
            f"{operator.share:.1%}",
        )
    console.print(table)
    console.print()


def show_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print a line for every target."""
    for verdict in verdicts:
        word = "[green]PASS[/]" if verdict.passed else "[red]MISS[/]"
        numbers = f"{verdict.measured:.3g} {verdict.sign} {verdict.target:g}"
        detail = f" ({verdict.detail})" if verdict.detail else ""
        console.print(f"{word} {escape(f'{verdict.what}: {numbers}{detail}')}", highlight=False)


def as_json(
    *,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    peak_samples: Sequence[float],
    comparisons: Sequence[Comparison],
    linear: Sequence[Point],
    memory: Memory,
    profiles: Mapping[str, Sequence[Operator]],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """Return everything that was measured."""
    peak = max(peak_samples)
    return {
        "machine": machine,
        "settings": settings,
        "peak_flops_per_second": peak,
        "peak_samples": peak_samples,
        "subjects": {
            found.name: {
                **asdict(found),
                **found.as_json(),
                "share_of_peak": found.flops / found.ours / peak,
                "share_of_peak_without_once": found.flops / found.ours_by_rows / peak,
                "share_of_peak_full_without_once": found.flops_full / found.ours_by_rows / peak,
            }
            for found in comparisons
        },
        "linear": [{**asdict(point), "seconds_per_row_token": point.per_token} for point in linear],
        "memory": memory.as_json(),
        "profiles": {
            name: [asdict(operator) for operator in operators]
            for name, operators in profiles.items()
        },
        "targets": [{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts],
    }
