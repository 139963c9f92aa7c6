"""``headprune eval``."""

from headprune.cli.options import Call


def evaluate(call: Call) -> None:
    """Measure a model, pruned or not: metric with interval, size, latency."""
    from headprune.report.tables import eval_table
    from headprune.workflows.evaluate import evaluate as evaluate_model

    result = evaluate_model(call.settings, progress=call.progress)
    call.write(result.to_json()) if call.own.as_json else call.show(eval_table(result))
