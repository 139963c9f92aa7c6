"""``headprune run``: all stages of a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.prune import OPTIONS as PRUNE_OPTIONS
from headprune.cli.prune import shower, with_output
from headprune.cli.settings import MODEL, ROWS, TIMES, WORK

OPTIONS: dict[str, Any] = {
    "file": Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.yaml", help="All settings; options override it."),
    ],
    **{
        name: PRUNE_OPTIONS[name]
        for name in (
            "keep",
            "heads",
            "target_parameters",
            "target_flops",
            "target_kv_cache",
            "target_latency",
            "out",
            "overwrite",
        )
    },
    "revision": MODEL["revision"],
    **ROWS,
    **WORK,
    **TIMES,
}


def command(call: Call) -> None:
    """Score, prune, save, prove, evaluate and (where the recipe names a baseline) check."""
    from headprune import gate
    from headprune.artefact import dump_json
    from headprune.report.tables import prune_table
    from headprune.workflows.prune import prune

    recipe, gates = with_output(call.recipe), call.settings.gate
    baseline = gate.read_baseline(Path(gates.baseline)) if gates.baseline else None
    results = prune(recipe.settings, progress=call.talk, show=shower(call), baseline=baseline)
    verdict = None
    if baseline and results.after:
        verdict = gate.compare(results.after, baseline, limits=gates)
    if call.json:
        judged = verdict.model_dump(mode="json") if verdict else None
        document = {"format": 1, "results": results.model_dump(mode="json"), "verdict": judged}
        call.write(dump_json(document))
    else:
        call.show(prune_table(results, directory=str(recipe.out), verdict=verdict))
    if verdict and not verdict.passed:
        raise typer.Exit(1)
