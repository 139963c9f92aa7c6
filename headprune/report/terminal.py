"""What a person reads in the terminal: a heatmap of scores, and tables. Data goes to stdout, talk to stderr."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from headprune.evaluation import EvalResult
from headprune.gate import Verdict
from headprune.latency import Latency
from headprune.plans import PruningPlan
from headprune.report.ci import headline
from headprune.report.tables import Prose, Row, Sheet, line, make_console, prose
from headprune.results import Results, Unmeasured
from headprune.verify import Proof

T = TypeVar("T")

_CACHE = "key/value cache/token"
_INTERVAL = "  95 % interval"


class ConsoleProgress:
    """Progress and remarks on stderr; silent when asked, plain lines where nobody watches."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.console = make_console(stderr=True)
        self.quiet = quiet
        self.verbose = verbose

    def notify(self, text: str) -> None:
        """Tell the user what is going on; where stderr can't be written to, nobody listens, and the work goes on.

        A terminal's lines end between words; where nobody watches each remark is one line.
        """
        if not self.quiet:
            try:
                if self.console.is_terminal:
                    self.console.print(prose(text), style="dim", crop=False)
                else:
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
                    self.notify(f"{description}: {index + 1}/{len(items)}")

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
    rows = [
        (result.metric, f"{as_number(result.value)} {as_interval(result.interval)}"),
        ("examples", f"{result.n:,} of {result.data.get('name')}{_split(result)}"),
        ("heads", "unknown" if result.heads is None else f"{result.heads:,}"),
        ("parameters", f"{result.parameters:,}"),
    ]
    if result.kv_cache_bytes_per_token is not None:
        rows.append((_CACHE, f"{result.kv_cache_bytes_per_token:,} bytes"))
    for name, took in result.latency_ms.items():
        rows.append((_timed(name), f"{as_ms(took.ms)} ms {_interval_of(took)}".rstrip()))
    sheet = Sheet([Row(cells) for cells in rows])
    return Group(sheet, *_doubts(result))


def prune_table(
    results: Results, *, directory: str, verdict: Verdict | None = None
) -> RenderableType:
    """Show before and after, the proofs, where the model lies and how to load it."""
    load = _how_to_load(results, directory)
    return Group(
        _before_and_after(results),
        *_doubts(results.before, results.after),
        *_proofs(results, verdict),
        *load,
    )


def unmeasured_table(results: Unmeasured, *, directory: str) -> RenderableType:
    """Show the same of a model whose quality was not measured."""
    rows = [_count_row("heads", *results.heads), _count_row("parameters", *results.parameters)]
    notes = prose("\nno data was read: quality was not measured\n", style="dim")
    proofs = _proof_lines(results.proofs)
    sheet = _change_sheet([*rows, _weights_row(results)])
    return Group(sheet, notes, *proofs, Text(), *_how_to_load(results, directory))


def _how_to_load(results: Results | Unmeasured, directory: str) -> list[Text]:
    trust = ", trust_remote_code=True" if results.loads_with == "remote-code" else ""
    return [
        line(("the model: ", "dim"), directory),
        line(
            ("load it:   ", "dim"),
            f'{results.auto_class}.from_pretrained("{directory}"{trust})',
        ),
        line(("or:        ", "dim"), f'headprune.load("{directory}")'),
    ]


def _change_sheet(rows: Sequence[Row]) -> Sheet:
    return Sheet(rows, titles=("", "before", "after", "change"), right=frozenset({1, 2, 3}))


def _count_row(name: str, before: int, after: int, unit: str = "") -> Row:
    return Row((name, f"{before:,}{unit}", f"{after:,}{unit}", _change(before, after)))


def _weights_row(results: Results | Unmeasured) -> Row:
    old, new = results.weights_bytes
    change = "none" if new == old else f"{new / old - 1:+.1%}"
    return Row(("weights on disk", f"{old / 1e6:.1f} MB", f"{new / 1e6:.1f} MB", change))


def _before_and_after(results: Results) -> Sheet:
    before, after = results.before, results.after
    numbers = (as_number(before.value), as_number(after.value))
    intervals = (as_interval(before.interval), as_interval(after.interval))
    change = as_interval(results.difference_interval, sign="+")
    rows = [
        Row((before.metric, *numbers, as_number(results.difference, sign="+")), "bold"),
        Row((_INTERVAL, *intervals, change)),
    ]
    rows += [
        *(
            _count_row(name, getattr(before, name) or 0, getattr(after, name) or 0)
            for name in ("heads", "parameters")
        ),
        _weights_row(results),
    ]
    old, new = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if old is not None and new is not None:
        rows.append(_count_row(_CACHE, old, new, " B"))
    for name, took in after.latency_ms.items():
        if name in before.latency_ms:  # memory held it for one of the models only
            rows += _latency_rows(name, before.latency_ms[name], took)
    return _change_sheet(rows)


def _latency_rows(name: str, before: Latency, after: Latency) -> list[Row]:
    change, (low, high) = before.change_to(after)
    times = (f"{as_ms(before.ms)} ms", f"{as_ms(after.ms)} ms")
    rows = [Row((_timed(name), *times, f"{change:+.0%}"))]
    if before.repeats and after.repeats:
        ends = (_interval_of(before), _interval_of(after), f"[{low:+.0%}, {high:+.0%}]")
        rows.append(Row((_INTERVAL, *ends)))
    return rows


def _timed(name: str) -> str:
    """Return what was timed."""
    batch, _, length = name.partition("_length_")
    if length:
        return f"latency, {batch.removeprefix('batch_')} x {length} tokens"
    return f"latency, {batch.replace('_', ' ')}"


def _interval_of(took: Latency) -> str:
    return f"[{as_ms(took.interval[0])}, {as_ms(took.interval[1])}]" if took.repeats else ""


def _doubts(*results: EvalResult) -> list[Prose]:
    """Say what was timed, and where the machine was too busy to do that well."""
    tokens = {took.tokens for name, took in results[-1].latency_ms.items() if "length" not in name}
    rows = [f"latency: median of repeats, rows of {n} tokens" for n in tokens if n is not None]
    found = [(name, took.busy) for result in results for name, took in result.latency_ms.items()]
    said = dict.fromkeys(f"{name.replace('_', ' ')}: {busy}" for name, busy in found if busy)
    return [
        *(prose(text, style="dim") for text in rows),
        *(
            prose(f"latency, {text}: small differences can't be told", style="yellow")
            for text in said
        ),
    ]


def _proofs(results: Results, verdict: Verdict | None) -> list[RenderableType]:
    after = results.after
    better = "higher" if after.higher_is_better else "lower"
    told = prose(
        f"\n{after.metric}: {better} is better; n = {after.n:,} of {after.data.get('name')}{_split(after)}, "
        f"rows that chose no head{' and that nothing was trained on' if results.heal else ''}\n",
        style="dim",
    )
    lines: list[RenderableType] = [told, *_proof_lines(results.proofs)]
    if verdict:
        mark, colour = ("✓", "green") if verdict.passed else ("✗", "red")
        said = Text(f"{mark} check {headline(verdict)}", style=colour)
        for finding in verdict.findings:
            said.append(f": {finding.message}", style="dim" if finding.passed else colour)
        lines.append(prose(said))
    return [*lines, Text()]


def _proof_lines(proofs: Sequence[Proof]) -> list[Prose]:
    return [
        prose(
            Text.assemble(
                (f"✓ {proof.name}", "green"), (f": {proof.detail} ({proof.measured:.2g})", "dim")
            )
        )
        for proof in proofs
    ]


def plan_table(plan: PruningPlan) -> RenderableType:
    """Show how many heads of each layer stay, and what goes with the others."""
    gone: dict[str, list[str]] = {}
    for head in plan.remove:
        gone.setdefault(str(head.site), []).append(f"H{head.head}")
    rows = [
        Row((site, str(kept), " ".join(gone.get(site, []))))
        for site, kept in plan.kept_per_site.items()
    ]
    layers = Sheet(rows, titles=("layer", "heads kept", "removed"), right=frozenset({1}), prose=2)
    saved = _savings(plan)
    if not saved:
        return layers
    context = plan.budget["saves"]["context"]
    note = prose(f"FLOPs are counted at {context} tokens of context", style="dim")
    return Group(layers, Text(), _change_sheet(saved), note)


def _savings(plan: PruningPlan) -> list[Row]:
    """Return what the model takes before and after, as far as the plan says."""
    whole, saves = plan.budget.get("whole"), plan.budget.get("saves")
    if not whole or not saves:
        return []
    heads = _count_row("heads", plan.budget["heads_before"], plan.budget["heads_after"])
    named = {
        "parameters": ("parameters", ""),
        "FLOPs/token": ("flops_per_token", ""),
        _CACHE: ("kv_cache_bytes_per_token", " B"),
    }
    return [
        heads,
        *(
            _count_row(name, whole[key], whole[key] - saves[key], unit)
            for name, (key, unit) in named.items()
            if whole[key]
        ),
    ]


def as_interval(interval: tuple[float, float], *, sign: str = "-") -> str:
    """Return an interval as text."""
    return f"[{as_number(interval[0], sign=sign)}, {as_number(interval[1], sign=sign)}]"


def as_number(value: float, *, sign: str = "-") -> str:
    """Return a metric, or a difference of it, as text."""
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.2f}"


def as_ms(value: float) -> str:
    """Return milliseconds with three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _split(result: EvalResult) -> str:
    split = result.data.get("split")
    return f" ({split})" if split else ""


def _change(before: int, after: int) -> str:
    if after == before:
        return "none"
    share = f" ({after / before - 1:+.1%})" if before else ""
    return f"{after - before:+,}{share}"
