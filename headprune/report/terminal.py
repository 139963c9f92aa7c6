"""What a person reads in the terminal: a heatmap of scores, and tables. Data goes to stdout, talk to stderr."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from headprune.evaluation import EvalResult
from headprune.gate import Verdict
from headprune.heads import PruningPlan
from headprune.report.ci import headline
from headprune.results import Results, Unmeasured
from headprune.verify import Proof

T = TypeVar("T")

_CACHE = "key/value cache, per token"


class Talk:
    """Progress and remarks on stderr; silent when asked, plain lines where nobody watches."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        # Names are shown as they are: [ ] in a path is no markup, and :x: no picture.
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.quiet = quiet
        self.verbose = verbose

    def say(self, text: str) -> None:
        """Tell the user what is going on; where stderr can't be written to, nobody listens, and the work goes on."""
        if not self.quiet:
            try:
                self.console.print(text, style="dim", soft_wrap=True)
            except (OSError, SystemExit):  # rich turns a broken pipe into the end of the program
                self.quiet = True

    def track(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield ``items`` under a progress bar with an estimate of the time left; without a terminal, a line per tenth."""
        if self.quiet or not items:
            yield from items
        elif self.console.is_terminal:
            yield from self._bar(items, description)
        else:
            step = max(1, len(items) // 10)
            for index, item in enumerate(items):
                yield item
                if (index + 1) % step == 0 or index + 1 == len(items):
                    self.say(f"{description}: {index + 1}/{len(items)} batches")

    def _bar(self, items: Sequence[T], description: str) -> Iterable[T]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=not self.verbose) as progress:
            yield from progress.track(items, description=description)


def eval_table(result: EvalResult) -> RenderableType:
    """Show one evaluation."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(result.metric, _metric(result))
    table.add_row("examples", f"{result.n:,} of {result.data.get('name')}{_split(result)}")
    table.add_row("heads", "unknown" if result.heads is None else f"{result.heads:,}")
    table.add_row("parameters", f"{result.parameters:,}")
    if result.kv_cache_bytes_per_token is not None:
        table.add_row(_CACHE, f"{result.kv_cache_bytes_per_token:,} bytes")
    for name, value in result.latency_ms.items():
        table.add_row(f"latency, {name.replace('_', ' ')}", f"{value:.1f} ms")
    return table


def prune_table(
    results: Results, *, directory: str, verdict: Verdict | None = None
) -> RenderableType:
    """Show before and after, the proofs, where the model lies and how to load it."""
    load = _how_to_load(results, directory)
    return Group(_before_and_after(results), _proofs(results, verdict), load)


def unmeasured_table(results: Unmeasured, *, directory: str) -> RenderableType:
    """Show the same of a model whose quality was not measured."""
    table = _change_table()
    for name, counts in (("heads", results.heads), ("parameters", results.parameters)):
        table.add_row(name, f"{counts[0]:,}", f"{counts[1]:,}", _change(*counts))
    table.add_row(*_weights_row(results))
    notes = Text("\nno data was read: quality was not measured\n\n", style="dim")
    _add_proofs(notes, results.proofs)
    return Group(table, notes, _how_to_load(results, directory))


def _how_to_load(results: Results | Unmeasured, directory: str) -> Text:
    trust = ", trust_remote_code=True" if results.loads_with == "remote-code" else ""
    return Text.assemble(
        ("the model: ", "dim"),
        directory,
        "\n",
        ("load it:   ", "dim"),
        f'{results.auto_class}.from_pretrained("{directory}"{trust})\n',
        ("or:        ", "dim"),
        f'headprune.load("{directory}")',
    )


def _change_table() -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for title in ("", "before", "after", "change"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    return table


def _weights_row(results: Results | Unmeasured) -> tuple[str, str, str, str]:
    old, new = results.weights_bytes
    return (
        "weights on disk",
        f"{old / 1e6:.1f} MB",
        f"{new / 1e6:.1f} MB",
        "none" if new == old else f"{new / old - 1:+.1%}",
    )


def _before_and_after(results: Results) -> Table:
    before, after = results.before, results.after
    table = _change_table()
    table.add_row(
        before.metric,
        as_number(before.value),
        as_number(after.value),
        as_number(results.difference, sign="+"),
        style="bold",
    )
    table.add_row(
        "  95 % interval",
        as_interval(before.interval),
        as_interval(after.interval),
        as_interval(results.difference_interval, sign="+"),
    )
    for name in ("heads", "parameters"):
        counts = getattr(before, name) or 0, getattr(after, name) or 0
        table.add_row(name, f"{counts[0]:,}", f"{counts[1]:,}", _change(*counts))
    table.add_row(*_weights_row(results))
    old, new = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if old is not None and new is not None:
        table.add_row(_CACHE, f"{old:,} B", f"{new:,} B", _change(old, new))
    for name, value in after.latency_ms.items():
        if name not in before.latency_ms:  # memory held it for one of the models only
            continue
        table.add_row(
            f"latency, {name.replace('_', ' ')}",
            f"{before.latency_ms[name]:.1f} ms",
            f"{value:.1f} ms",
            f"{value / before.latency_ms[name] - 1:+.0%}",
        )
    return table


def _proofs(results: Results, verdict: Verdict | None) -> Text:
    after = results.after
    better = "higher" if after.higher_is_better else "lower"
    notes = Text(
        f"\n{after.metric}: {better} is better; n = {after.n:,} of {after.data.get('name')}{_split(after)}, "
        f"rows that chose no head{' and that nothing was trained on' if results.heal else ''}\n\n",
        style="dim",
    )
    _add_proofs(notes, results.proofs)
    if verdict:
        mark, colour = ("✓", "green") if verdict.passed else ("✗", "red")
        notes.append(f"{mark} check {headline(verdict)}", style=colour)
        for finding in verdict.findings:
            notes.append(f": {finding.message}\n", style="dim" if finding.passed else colour)
    return notes


def _add_proofs(notes: Text, proofs: Sequence[Proof]) -> None:
    for proof in proofs:
        notes.append(f"✓ {proof.name}", style="green")
        notes.append(f": {proof.detail} ({proof.measured:.2g})\n", style="dim")


def plan_table(plan: PruningPlan) -> RenderableType:
    """Show how many heads of each layer stay."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("layer")
    table.add_column("heads kept", justify="right")
    table.add_column("removed")
    gone: dict[str, list[str]] = {}
    for head in plan.remove:
        gone.setdefault(str(head.site), []).append(f"H{head.head}")
    for site, kept in plan.kept_per_site.items():
        table.add_row(site, str(kept), " ".join(gone.get(site, [])))
    return table


def key_value_table(rows: dict[str, Any]) -> RenderableType:
    """Show names and values."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _metric(result: EvalResult) -> str:
    return f"{as_number(result.value)} {as_interval(result.interval)}"


def as_interval(interval: tuple[float, float], *, sign: str = "-") -> str:
    """Return an interval as text."""
    return f"[{as_number(interval[0], sign=sign)}, {as_number(interval[1], sign=sign)}]"


def as_number(value: float, *, sign: str = "-") -> str:
    """Return a metric, or a difference of it, as text."""
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.2f}"


def _split(result: EvalResult) -> str:
    split = result.data.get("split")
    return f" ({split})" if split else ""


def _change(before: int, after: int) -> str:
    if after == before:
        return "none"
    share = f" ({after / before - 1:+.1%})" if before else ""
    return f"{after - before:+,}{share}"
