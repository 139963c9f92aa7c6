"""``headprune score``."""

from typing import Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import Method, Model, Normalize, NumSamples, Objective, Steps

OPTIONS: dict[str, Any] = {
    "model": Model,
    "method": Method,
    "objective": Objective,
    "normalize": Normalize,
    "steps": Steps,
    "num_samples": NumSamples,
    "until": Annotated[
        str | None,
        typer.Option(
            metavar="decided",
            help="With --method ablation --keep: spend rows only on heads of which it is open whether they stay.",
        ),
    ],
    "keep": Annotated[
        float | None,
        typer.Option(
            "--keep", help="Share of the heads that would stay, for --until decided and --steps."
        ),
    ],
    "heads": Annotated[
        int | None,
        typer.Option("--heads", help="How many heads would stay, for --steps."),
    ],
    "mend": Annotated[
        str | None,
        typer.Option(
            metavar="none|best|scale|bias|refit",
            help="How what is left will be mended: it is before it is scored again, with --steps. (default: best)",
        ),
    ],
    "max_work": Annotated[
        float | None,
        typer.Option(
            help="With --until: the most that is run, as a share of full ablation. (default: 0.33)"
        ),
    ],
    "compile": Annotated[
        bool | None,
        typer.Option(
            "--compile",
            help="Compile the blocks for --method ablation (torch.compile): minutes first, then faster.",
        ),
    ],
    "run": Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where scores.json goes (default: headprune-runs/NNN-METHOD)."
        ),
    ],
}


def command(call: Call) -> None:
    """Score every attention head on your data, and show a heatmap."""
    from headprune import pipeline
    from headprune.distributed import join_world, leave_world
    from headprune.report.terminal import heatmap, race_text, score_table

    world = join_world(cpu=call.recipe.device == "cpu")
    scores, path = pipeline.score(call.recipe, voice=call.talk, world=world)
    leave_world(world)
    if path is None:
        return
    if call.json:
        call.write(scores.to_json())
    else:
        call.show(heatmap(scores))
        call.show("")
        call.show(score_table(scores))
        if scores.race is not None:
            call.show("")
            call.show(race_text(scores.race, scores))
    call.talk.say(f"written: {path}")
