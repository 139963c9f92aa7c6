"""``headprune convert``."""

from pathlib import Path

from headprune.cli.options import Call


def convert(call: Call) -> None:
    """Make a model that transformers v4 pruned (config.pruned_heads) or pickled load with transformers v5."""
    from headprune import workflows
    from headprune.artefact import dump_json
    from headprune.report.terminal import key_value_table

    out = call.settings.run.out or ""
    results = workflows.convert(call.recipe, out=Path(out), progress=call.progress)
    rows = {"directory": out, "loads_with": results.loads_with}
    call.write(dump_json({"format": 1, **rows})) if call.own.as_json else call.show(
        key_value_table(rows)
    )
