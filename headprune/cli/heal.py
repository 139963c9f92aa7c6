"""``headprune heal``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, ROWS, WORK, Overwrite, switch
from headprune.errors import ConfigError

if TYPE_CHECKING:
    from headprune.config import Recipe

_TRAINING = "Training"
OPTIONS: dict[str, Any] = {
    **MODEL,
    "model": Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="What headprune prune saved.", show_default=False),
    ],
    "out": Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the healed model goes (default: DIR-healed)."),
    ],
    "overwrite": Overwrite,
    "teacher": Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whom it learns from (default: what it came from)."),
    ],
    "num_samples": Annotated[
        int | None, typer.Option(help="Rows to train on. (default: as when it was pruned; 1024)")
    ],
    "epochs": Annotated[
        float | None,
        typer.Option(help="Times it goes over them. (default: 3)", rich_help_panel=_TRAINING),
    ],
    "max_steps": Annotated[
        int | None,
        typer.Option(help="Steps of the optimizer, whatever --epochs.", rich_help_panel=_TRAINING),
    ],
    "learning_rate": Annotated[
        float | None,
        typer.Option(help="(default: 5e-5; 1e-3 with --lora)", rich_help_panel=_TRAINING),
    ],
    "lora": Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train adapters of this rank, merged at the end. (default: all weights)",
            rich_help_panel=_TRAINING,
        ),
    ],
    "trainer": Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Any other of transformers.TrainingArguments; repeatable.",
            rich_help_panel=_TRAINING,
        ),
    ],
    "run_dir": Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where checkpoints stay (default: headprune-runs/heal-..., until the model is saved).",
            rich_help_panel=_TRAINING,
        ),
    ],
    "resume": switch("resume", "Go on from the last checkpoint.", panel=_TRAINING),
    **ROWS,
    **WORK,
}


def command(call: Call) -> None:
    """Let a pruned model learn from the one it came from, by distillation; prove it and save it anew."""
    from headprune.report.tables import prune_table
    from headprune.workflows.heal import heal

    recipe = _with_output(call.recipe)
    results = heal(recipe.settings, resume=bool(call.own.get("resume")), progress=call.talk)
    table = prune_table(results, directory=str(recipe.out))
    call.write(results.to_json()) if call.json else call.show(table)


def _with_output(recipe: "Recipe") -> "Recipe":
    """Return the recipe with the output directory settled.

    Raises:
        ConfigError: No model is named.
    """
    if recipe.model is None:
        raise ConfigError(
            "no model is named to heal", where="DIR", hint="headprune heal headprune-models/NAME"
        )
    if recipe.out is not None:
        return recipe
    home = Path(recipe.model)
    if not home.is_dir():
        home = Path("headprune-models") / re.sub("[/:]", "-", recipe.model)
    home = home if home.name else home.absolute()
    return recipe.model_copy(update={"out": str(home.with_name(f"{home.name}-healed"))})
