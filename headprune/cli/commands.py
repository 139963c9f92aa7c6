"""What each command does: call a workflow, show what comes of it. Nothing heavy is imported before."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headprune.cli.checks import is_file_of_results
from headprune.cli.options import Call, as_options
from headprune.cli.report import measure_by_group
from headprune.errors import HeadpruneError

if TYPE_CHECKING:
    from headprune.artefact import EvalResult
    from headprune.config import Settings
    from headprune.export.gguf import Exported
    from headprune.gate import Baseline
    from headprune.plans import HeadScores, PruningPlan


def score(call: Call) -> None:
    """Score every attention head on your data, and show a heatmap."""
    from headprune.report.heads import agreement_table, heatmap, one_head_table, score_table
    from headprune.runtime.distributed import launched_world
    from headprune.workflows.score import score as score_model

    if call.own.by:
        measure_by_group(call, "score")
        return
    with launched_world(cpu=call.settings.model.device == "cpu") as world:
        by_method, paths = score_model(call.settings, progress=call.progress, world=world)
    if not paths:
        return
    if call.own.as_json:
        documents = ",\n".join(scores.to_json().rstrip() for scores in by_method)
        call.write(documents + "\n" if len(by_method) == 1 else f"[\n{documents}\n]\n")
    else:
        tables = [table for scores in by_method for table in (heatmap(scores), score_table(scores))]
        tables += [one_head_table(scores) for scores in by_method if scores.one_head]
        tables += [agreement_table(by_method)] if len(by_method) > 1 else []
        for number, table in enumerate(tables):
            if number:
                call.show("")
            call.show(table)
    call.progress.notify(f"written: {', '.join(map(str, paths))}")


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


def sweep(call: Call) -> None:
    """Measure the metric against the share of heads kept: what prune makes of the model, and what scores alone do."""
    from headprune.report.tables import sweep_table
    from headprune.workflows.sweep import sweep as sweep_model

    curves, out = sweep_model(call.settings, progress=call.progress)
    call.write(curves.to_json()) if call.own.as_json else call.show(sweep_table(curves))
    call.progress.notify(f"written: {out}/sweep.json, sweep.png, sweep.svg, and the scores")


def analyze(call: Call) -> None:
    """Show what every head does: sinks, positions, induction, ... with baselines, intervals and published thresholds."""
    from headprune.report.roles import relations_table, roles_map, roles_table, similarity_table
    from headprune.runtime.distributed import launched_world
    from headprune.workflows.analyze import analyze as analyze_model

    if call.own.by:
        measure_by_group(call, "analyze")
        return
    with launched_world(cpu=call.settings.model.device == "cpu") as world:
        roles, similarity, path = analyze_model(call.settings, progress=call.progress, world=world)
    if path is None:
        return
    if call.own.as_json:
        call.write(roles.to_json())
    else:
        call.show(roles_map(roles))
        alike = similarity and similarity_table(similarity)
        for table in filter(None, (roles_table(roles, as_options), relations_table(roles), alike)):
            call.show("")
            call.show(table)
    call.progress.notify(f"written: {path}")


def view(call: Call) -> None:
    """Draw what every head looks at in a text, as one page that a browser opens from disk."""
    from headprune.report.roles import view_table
    from headprune.workflows.view import Viewed
    from headprune.workflows.view import view as view_text

    own, settings = call.own, call.settings
    viewed = Viewed(own.shown_text or "", own.text_pair, own.layers)
    if "out" not in call.given:  # a file's is where a model goes
        settings = settings.replaced(out=None)
    maps, path = view_text(settings, viewed, progress=call.progress)
    call.write(maps.to_json()) if own.as_json else call.show(view_table(maps))
    call.progress.notify(f"written: {path}")


def evaluate(call: Call) -> None:
    """Measure a model, pruned or not: metric with interval, size, latency."""
    from headprune.report.tables import eval_table
    from headprune.workflows.evaluate import evaluate as evaluate_model

    result = evaluate_model(call.settings, progress=call.progress)
    call.write(result.to_json()) if call.own.as_json else call.show(eval_table(result))


def heal(call: Call) -> None:
    """Let a pruned model learn from the one it came from, by distillation; prove it and save it anew."""
    from headprune.report.tables import prune_table
    from headprune.runtime.distributed import launched_world
    from headprune.workflows.heal import heal as heal_model

    out = call.settings.run.out or _beside(call.settings.model.model or "")
    asked, again = call.settings.replaced(out=out), call.own.resume
    with launched_world(cpu=asked.model.device == "cpu", trains=True) as world:
        results = heal_model(asked, resume=again, progress=call.progress, world=world)
    if results is not None:
        call.write(results.to_json()) if call.own.as_json else call.show(
            prune_table(results, directory=out)
        )


def _beside(model: str) -> str:
    """Return where the healed model goes: beside the pruned one."""
    home = Path(model)
    if not home.is_dir():
        home = Path("headprune-models") / re.sub("[/:]", "-", model)
    home = home if home.name else home.absolute()
    return str(home.with_name(f"{home.name}-healed"))


def inspect(call: Call) -> None:
    """Show where a model's heads are, what can't be pruned and why, and what pruning would save; config.json is enough."""
    from headprune.report.heads import survey_table
    from headprune.workflows.inspect import inspect as inspect_model

    survey = inspect_model(call.settings, progress=call.progress)
    call.write(survey.to_json()) if call.own.as_json else call.show(survey_table(survey))


def convert(call: Call) -> None:
    """Make a model that transformers v4 pruned (config.pruned_heads) or pickled load with transformers v5."""
    from headprune.artefact import dump_json
    from headprune.report.terminal import key_value_table
    from headprune.workflows.convert import convert as convert_model

    out = call.settings.run.out or ""
    results = convert_model(call.settings, progress=call.progress)
    rows = {"directory": out, "loads_with": results.loads_with}
    call.write(dump_json({"format": 1, **rows})) if call.own.as_json else call.show(
        key_value_table(rows)
    )


def export(call: Call) -> None:
    """Write a Llama-like model, pruned or not, as GGUF for llama.cpp, and prove it by reading it back."""
    from headprune.report.terminal import key_value_table
    from headprune.workflows.convert import export as export_model

    exported = export_model(
        call.settings,
        gguf=call.own.gguf or Path(),
        with_tokenizer=call.own.tokenizer,
        progress=call.progress,
    )
    call.write(exported.to_json()) if call.own.as_json else call.show(
        key_value_table(_rows(exported))
    )


def _rows(exported: "Exported") -> dict[str, Any]:
    shape = "head counts per layer" if exported.architecture == "deci" else "every layer alike"
    return {
        "file": f"{exported.file} ({exported.bytes / 1e6:.1f} MB, {exported.dtype})",
        "architecture": f"{exported.architecture} ({shape})",
        "heads": " ".join(map(str, exported.heads)),
        "key/value heads": " ".join(map(str, exported.key_value_heads)),
        "tokenizer": exported.tokenizer or "none: give token ids",
        **{f"✓ {proof.name}": proof.detail for proof in exported.proofs},
    }


def check(call: Call) -> None:
    """Compare a model with a committed baseline; exit 0 it holds, 1 it regressed, 2 it can't be told."""
    from headprune import gate
    from headprune.report.ci import FORMATS

    spec = call.settings.gate
    path = Path(spec.baseline or "")
    if call.own.update_baseline:
        gate.refuse_unusable_baseline(path)
        call.write(gate.write_baseline(path, _result(call)).to_json())
        call.progress.notify(f"written: {path}")
        return
    baseline = gate.read_baseline(path)
    verdict = gate.compare(_result(call, baseline), baseline, limits=spec)
    call.write(FORMATS[call.own.format or ("json" if call.own.as_json else "text")](verdict))
    if not verdict.passed:
        raise typer.Exit(1)


def error_on_stdout(options: Mapping[str, Any], error: HeadpruneError) -> str:
    """Return what stdout says of an exit 2: whoever reads a format for machines reads it there, too."""
    if options.get("as_json") or not options.get("format"):
        return ""
    from headprune.report.ci import ERROR_FORMATS

    text = ERROR_FORMATS.get(options["format"])
    return text(error) if text else ""


def _result(call: Call, baseline: "Baseline | None" = None) -> "EvalResult":
    """Return the result to judge: read from a file, or measured; what can't be judged is refused first."""
    from headprune.results import read_result

    if is_file_of_results(call):
        return read_result(Path(call.settings.model.model or ""))
    from headprune.footprint import size_names
    from headprune.gate import refuse_untimed
    from headprune.workflows.evaluate import evaluate

    run = call.settings.run
    if baseline is not None:
        sizes = size_names(lengths=run.latency_length, rows=run.latency_batch)
        refuse_untimed(baseline, call.settings.gate, names=sizes if run.latency else ())
    return evaluate(call.settings, progress=call.progress, baseline=baseline)
