"""``headprune convert``."""

from headprune.cli.options import Call


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
