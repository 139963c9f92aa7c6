"""``headprune prune``, and ``headprune run``, which does the same with the settings of a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headprune.cli.options import Call

if TYPE_CHECKING:
    from headprune.config import Settings
    from headprune.plans import HeadScores, PruningPlan


def prune(call: Call) -> None:
    """Remove the least important heads, prove it, save the smaller model, and check it where a file names a baseline."""
    from headprune import gate
    from headprune.artefact import dump_json
    from headprune.report.tables import plan_table, prune_table
    from headprune.workflows.prune import plan as plan_model
    from headprune.workflows.prune import prune as prune_model

    settings = _with_output(call)
    spec, progress = settings.gate, call.progress
    stream, show = call.own.stream, _shower(call)
    if call.own.dry_run:
        plan = plan_model(settings, progress=progress, show=show, stream=stream)
        call.write(plan.to_json()) if call.own.as_json else call.show(plan_table(plan))
        progress.notify("dry run: no model was written")
        return
    named = None if call.own.no_baseline else spec.baseline
    baseline = gate.read_baseline(Path(named)) if named else None
    verdict = None
    results = prune_model(settings, progress=progress, show=show, baseline=baseline, stream=stream)
    if baseline is not None and results.after is not None:
        verdict = gate.compare(results.after, baseline, limits=spec)
    if not call.own.as_json:
        call.show(prune_table(results, directory=str(settings.run.out), verdict=verdict))
    elif verdict is None:
        call.write(results.to_json())
    else:
        values = {"results": results, "verdict": verdict}
        documents = {name: value.model_dump(mode="json") for name, value in values.items()}
        call.write(dump_json({"format": 1, **documents}))
    if verdict is not None and not verdict.passed:
        raise typer.Exit(1)


def _with_output(call: Call) -> "Settings":
    """Return the settings with the output directory settled."""
    settings = call.settings
    if settings.run.out is not None or call.own.dry_run:
        return settings
    name = Path((settings.model.model or "").replace(":", "-")).absolute().name
    budget, amount = next(iter(settings.plan.budgets.items()))
    text = f"{amount:g}" if isinstance(amount, float) else str(amount).replace("%", "pct")
    kind = budget.removeprefix("target_").replace("_", "-")
    out = Path("headprune-models") / f"{name}-{kind}-{text}"
    return settings.replaced(out=str(out))


def _shower(call: Call) -> "Callable[[HeadScores, PruningPlan], None]":
    """Return what shows scores and plan as a heatmap while the work goes on."""
    from headprune.report.heads import heatmap
    from headprune.report.terminal import show as show_on

    def show(scores: "HeadScores", plan: "PruningPlan") -> None:
        if not call.progress.quiet and not call.own.as_json:
            show_on(call.progress.console, heatmap(scores, plan))

    return show
