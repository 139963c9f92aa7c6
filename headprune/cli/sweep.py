"""``headprune sweep``."""

from headprune.cli.options import Call


def sweep(call: Call) -> None:
    """Measure the metric against the share of heads kept: what prune makes of the model, and what scores alone do."""
    from headprune.report.tables import sweep_table
    from headprune.workflows.sweep import sweep as sweep_model

    curves, out = sweep_model(call.settings, progress=call.progress)
    call.write(curves.to_json()) if call.own.as_json else call.show(sweep_table(curves))
    call.progress.notify(f"written: {out}/sweep.json, sweep.png, sweep.svg, and the scores")
