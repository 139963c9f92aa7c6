"""``headprune score``."""

from typing import Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import (
    MODEL,
    ROWS,
    WORK,
    Compile,
    Normalize,
    NumSamples,
    Objective,
    Steps,
)
from headprune.scoring.catalogue import METHODS

OPTIONS: dict[str, Any] = {
    **MODEL,
    "methods": Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            metavar="NAME[,NAME]",
            help=f"How heads are scored: {', '.join(METHODS)}. Several share what passes they can. (default: unique)",
            show_default=False,
        ),
    ],
    "objective": Objective,
    "normalize": Normalize,
    "steps": Steps,
    "num_samples": NumSamples,
    "keep": Annotated[
        float | None,
        typer.Option("--keep", help="Share of the heads that would stay, for --steps."),
    ],
    "heads": Annotated[
        int | None,
        typer.Option("--heads", help="How many heads would stay, for --steps."),
    ],
    "reconstruct": Annotated[
        str | None,
        typer.Option(
            metavar="none|best|scale|bias|refit",
            help="How what is left will be reconstructed: it is before it is scored again, with --steps. (default: best)",
        ),
    ],
    "compile": Compile,
    "run_dir": Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where scores.json goes, and scores.METHOD.json of further methods (default: headprune-runs/NNN-METHOD).",
        ),
    ],
    **ROWS,
    **WORK,
}


def command(call: Call) -> None:
    """Score every attention head on your data, and show a heatmap."""
    from headprune import workflows
    from headprune.report.heads import agreement_table, heatmap, score_table
    from headprune.runtime.distributed import join_world, leave_world

    world = join_world(cpu=call.recipe.device == "cpu")
    found, paths = workflows.score(call.recipe, progress=call.talk, world=world)
    leave_world(world)
    if not paths:
        return
    if call.json:
        documents = ",\n".join(scores.to_json().rstrip() for scores in found)
        call.write(documents + "\n" if len(found) == 1 else f"[\n{documents}\n]\n")
    else:
        shown = [part for scores in found for part in (heatmap(scores), score_table(scores))]
        shown += [agreement_table(found)] if len(found) > 1 else []
        call.show(shown[0])
        for part in shown[1:]:
            call.show("")
            call.show(part)
    call.talk.notify(f"written: {', '.join(map(str, paths))}")
