"""``headprune convert``."""

from typing import Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, WORK, Overwrite, switch
from headprune.errors import ConfigError

OPTIONS: dict[str, Any] = {
    **MODEL,
    "dtype": WORK["dtype"],
    "out": Annotated[str | None, typer.Option(metavar="DIR", help="Where the model goes.")],
    "overwrite": Overwrite,
    "allow_pickle": switch("allow-pickle", "Read pickled weights (*.bin), tensors alone."),
}


def command(call: Call) -> None:
    """Make a model that transformers v4 pruned (config.pruned_heads) or pickled load with transformers v5."""
    from headprune.artefact import dump_json
    from headprune.report.terminal import key_value_table
    from headprune.workflows.convert import convert

    if call.recipe.out is None:
        raise ConfigError(
            "no directory is named to write to",
            where="--out",
            hint="headprune convert MODEL --out DIR",
        )
    results = convert(call.settings, progress=call.talk)
    rows = {"directory": call.recipe.out, "loads_with": results.loads_with}
    call.write(dump_json({"format": 1, **rows})) if call.json else call.show(key_value_table(rows))
