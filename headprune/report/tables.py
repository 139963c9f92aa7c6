"""What a person reads of each result: a table per value, laid out by :mod:`headprune.report.terminal`."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from headprune.artefact import DEFAULT_RECONSTRUCT, EvalResult, Latency, Proof
from headprune.gate import Verdict, spaced
from headprune.plans import PruningPlan
from headprune.report.ci import headline
from headprune.report.healing import how_to_heal, stages_table, training_of
from headprune.report.numbers import (
    interval,
    milliseconds,
    milliseconds_interval,
    number,
    timed,
)
from headprune.report.terminal import Prose, Row, Sheet, line, prose
from headprune.results import Curve, Results, Sweep, SweepPoint

_CACHE = "key/value cache/token"
_INTERVAL = "  95 % interval"


def eval_table(result: EvalResult) -> RenderableType:
    """Show one evaluation."""
    rows = {
        result.metric: f"{number(result.value)} {interval(result.interval)}",
        "examples": _rows(result),
        "heads": "unknown" if result.heads is None else f"{result.heads:,}",
        "parameters": f"{result.parameters:,}",
    }
    if result.kv_cache_bytes_per_token is not None:
        rows[_CACHE] = f"{result.kv_cache_bytes_per_token:,} bytes"
    for name, latency in result.latency_ms.items():
        rows[timed(name)] = (
            f"{milliseconds(latency.ms)} ms {milliseconds_interval(latency)}".rstrip()
        )
    return Group(Sheet([Row(row) for row in rows.items()]), *_timing_notes(result))


def prune_table(
    results: Results, *, directory: str, verdict: Verdict | None = None
) -> RenderableType:
    """Show how a model was trained, before and after, the proofs, the verdict, where the model lies and how to load it."""
    parts: list[RenderableType] = []
    after, heal = results.after, results.heal
    if heal is not None:
        parts.append(prose(training_of(heal), style="dim"))
    if results.cut is not None:
        parts += [stages_table(results), Text()]
    parts.append(_before_and_after(results))
    note = "no data was read: quality was not measured"
    if after is not None:
        parts += _timing_notes(*(each for each in (results.before, after) if each is not None))
        apart = f"rows that chose no head{' and that nothing was trained on' if heal else ''}"
        note = f"{_basis(after)}, {apart}"
    parts.append(prose(f"\n{note}\n", style="dim"))
    parts += _roles(results)
    return Group(
        *parts,
        *map(_proof_line, results.proofs),
        *([_verdict_line(verdict)] if verdict else []),
        Text(),
        *_loading(results, directory),
        *how_to_heal(results, directory),
    )


def plan_table(plan: PruningPlan) -> RenderableType:
    """Show how many heads of each layer stay, and what goes with the others."""
    removed: dict[str, list[str]] = {}
    for head in plan.remove:
        removed.setdefault(str(head.site), []).append(f"H{head.head}")
    rows = [
        Row((site, str(kept), " ".join(removed.get(site, []))))
        for site, kept in plan.kept_per_site.items()
    ]
    sheet = Sheet(rows, titles=("layer", "heads kept", "removed"), right=frozenset({1}), prose=2)
    layers = Group(sheet, *([Text(), *_roles(plan)[:-1]] if plan.roles else []))
    whole, saves = plan.budget.get("whole"), plan.budget.get("saves")
    if not whole or not saves:
        return layers
    keys = {
        "parameters": "parameters",
        "FLOPs/token": "flops_per_token",
        _CACHE: "kv_cache_bytes_per_token",
    }
    counts = {"heads": (plan.budget["heads_before"], plan.budget["heads_after"])}
    counts |= {
        name: (whole[key], whole[key] - saves[key]) for name, key in keys.items() if whole[key]
    }
    note = prose(f"FLOPs are counted at {saves['context']} tokens of context", style="dim")
    return Group(layers, Text(), _changes(_count_rows(counts)), note)


def sweep_table(sweep: Sweep) -> RenderableType:
    """Show every point with its interval and its paired difference to the whole model, then what is to be seen."""
    rows: list[Row] = []
    for curve in sweep.curves:
        rows.append(Row((_curve_heading(curve),), "bold"))
        rows += [Row(_point_cells(point, sweep.whole)) for point in curve.points]
        rows.append(Row(()))
    titles = ("keep", "params", "time", sweep.metric, "95 %", "change", "95 %")
    note = (
        f"{_basis(sweep)}, rows that chose no head\n"
        "keep: share of the heads (and how many); params: share of the parameters left"
    )
    if took := sweep.whole.latency_ms:
        rows_timed, busy = sweep.latency["rows"], sweep.latency["busy"]
        note += f"\ntime: share of a forward's {milliseconds(took)} ms, estimated for {rows_timed}"
        note += f"; roughly, for {busy}" if busy else ""
    return Group(
        Sheet(rows, titles=titles, right=frozenset(range(len(titles)))),
        prose(f"{note}\n", style="dim"),
        *(prose(_curve_summary(curve, sweep)) for curve in sweep.curves),
    )


def _roles(value: Results | PruningPlan) -> list[RenderableType]:
    """Say how many of the removed heads have which role, and on what that was measured; an empty line follows."""
    if value.roles is None or not value.roles.sentence:
        return []
    basis = [prose(value.roles.basis, style="dim")] if value.roles.basis else []
    return [prose(value.roles.sentence), *basis, Text()]


def _before_and_after(results: Results) -> Sheet:
    before, after, ends = results.before, results.after, results.difference_interval
    counts = {"heads": results.heads, "parameters": results.parameters}
    sizes = [*_count_rows(counts), _weights_row(results)]
    if before is None or after is None or results.difference is None or ends is None:
        return _changes(sizes)
    change = number(results.difference, sign="+")
    measured = [
        Row((before.metric, number(before.value), number(after.value), change), "bold"),
        Row(
            (
                _INTERVAL,
                interval(before.interval),
                interval(after.interval),
                interval(ends, sign="+"),
            )
        ),
    ]
    rows = [*([] if results.cut else measured), *sizes]
    cache = (before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token)
    if cache[0] is not None and cache[1] is not None:
        rows += _count_rows({_CACHE: (cache[0], cache[1])})
    for name, latency in after.latency_ms.items():
        if name in before.latency_ms:  # memory held it for one of the models only
            rows += _latency_rows(name, before.latency_ms[name], latency)
    return _changes(rows)


def _changes(rows: Sequence[Row]) -> Sheet:
    return Sheet(rows, titles=("", "before", "after", "change"), right=frozenset({1, 2, 3}))


def _count_rows(counts: Mapping[str, tuple[int | None, int]]) -> list[Row]:
    """Return a row for each thing that is counted, before (where that is known) and after."""
    rows = []
    for name, (before, after) in counts.items():
        unit = " B" if name == _CACHE else ""
        if before is None:
            rows.append(Row((name, "", f"{after:,}{unit}", "")))
            continue
        share = f" ({after / before - 1:+.1%})" if before else ""
        change = "none" if after == before else f"{after - before:+,}{share}"
        rows.append(Row((name, f"{before:,}{unit}", f"{after:,}{unit}", change)))
    return rows


def _weights_row(results: Results) -> Row:
    before, after = results.weights_bytes
    if before is None:
        return Row(("weights on disk", "", f"{after / 1e6:.1f} MB", ""))
    change = "none" if after == before else f"{after / before - 1:+.1%}"
    return Row(("weights on disk", f"{before / 1e6:.1f} MB", f"{after / 1e6:.1f} MB", change))


def _latency_rows(name: str, before: Latency, after: Latency) -> list[Row]:
    change, (low, high) = before.change_to(after)
    rows = [
        Row(
            (
                timed(name),
                f"{milliseconds(before.ms)} ms",
                f"{milliseconds(after.ms)} ms",
                f"{change:+.0%}",
            )
        )
    ]
    if before.repeats and after.repeats:
        ends = (
            milliseconds_interval(before),
            milliseconds_interval(after),
            f"[{low:+.0%}, {high:+.0%}]",
        )
        rows.append(Row((_INTERVAL, *ends)))
    return rows


def _timing_notes(*results: EvalResult) -> list[Prose]:
    """Say what was timed, and where the machine was too busy to do that well."""
    timed = [(name, latency) for result in results for name, latency in result.latency_ms.items()]
    tokens = dict.fromkeys(
        latency.tokens
        for name, latency in results[-1].latency_ms.items()
        if latency.tokens is not None and "length" not in name
    )
    doubts = dict.fromkeys(f"{spaced(name)}: {took.busy}" for name, took in timed if took.busy)
    notes = [(f"latency: median of repeats, rows of {count} tokens", "dim") for count in tokens]
    notes += [(f"latency, {doubt}: small differences can't be told", "yellow") for doubt in doubts]
    return [prose(text, style=style) for text, style in notes]


def _proof_line(proof: Proof) -> Prose:
    detail = f": {proof.detail} ({proof.measured:.2g})"
    return prose(Text.assemble((f"✓ {proof.name}", "green"), (detail, "dim")))


def _verdict_line(verdict: Verdict) -> Prose:
    mark, colour = ("✓", "green") if verdict.passed else ("✗", "red")
    text = Text(f"{mark} check {headline(verdict)}", style=colour)
    for finding in verdict.findings:
        text.append(f": {finding.message}", style="dim" if finding.passed else colour)
    return prose(text)


def _loading(results: Results, directory: str) -> list[Text]:
    trust = ", trust_remote_code=True" if results.loads_with == "remote-code" else ""
    call = f'{results.auto_class}.from_pretrained("{directory}"{trust})'
    return [
        line(("the model: ", "dim"), directory),
        line(("load it:   ", "dim"), call),
        line(("or:        ", "dim"), f'headprune.load("{directory}")'),
    ]


def _curve_heading(curve: Curve) -> str:
    if curve.reconstruct is None:
        return f"{curve.method}: scored once, heads masked"
    steps = f"in {curve.steps} steps" if curve.steps > 1 else "once"
    tried = "" if curve.reconstruct == DEFAULT_RECONSTRUCT else f" ({curve.reconstruct})"
    left = "" if curve.reconstruct == "none" else f", reconstructed{tried} where that helps"
    return f"{curve.name}: scored by {curve.method} {steps}{left}"


def _point_cells(point: SweepPoint, whole: SweepPoint) -> tuple[str, ...]:
    shares = [
        f"{left / of:.0%}" if left is not None and of else ""
        for left, of in (
            (point.parameters, whole.parameters),
            (point.latency_ms, whole.latency_ms),
        )
    ]
    return (
        f"{point.keep:g} ({point.heads})",
        *shares,
        number(point.value),
        interval(point.interval),
        number(point.difference, sign="+"),
        interval(point.difference_interval, sign="+"),
    )


def _curve_summary(curve: Curve, sweep: Sweep) -> str:
    if curve.knee is None:
        text = f"{curve.name}: no knee"
    else:
        value = number(curve.at(curve.knee).value)
        text = f"{curve.name}: knee at keep {curve.knee:g} ({value})"
    if sweep.max_drop is None:
        return text
    if curve.within_drop is None or curve.within_drop == 1:
        return f"{text}; no cut is surely within a drop of {sweep.max_drop:g}"
    return f"{text}; drop surely within {sweep.max_drop:g} down to keep {curve.within_drop:g}"


def _basis(result: EvalResult | Sweep) -> str:
    """Return which way the metric is better, and what it was measured on."""
    better = "higher" if result.higher_is_better else "lower"
    return f"{result.metric}: {better} is better; n = {_rows(result)}"


def _rows(result: EvalResult | Sweep) -> str:
    split = f" ({result.data['split']})" if result.data.get("split") else ""
    return f"{result.n:,} of {result.data.get('name')}{split}"
