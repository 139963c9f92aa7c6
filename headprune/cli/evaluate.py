"""``headprune eval``."""

from headprune.cli.options import Call


def evaluate(call: Call) -> None:
    """Measure a model, pruned or not: metric with interval, size, latency."""
    from headprune import workflows
    from headprune.report.tables import eval_table

    result = workflows.evaluate(call.recipe, progress=call.progress)
    call.write(result.to_json()) if call.own.as_json else call.show(eval_table(result))
