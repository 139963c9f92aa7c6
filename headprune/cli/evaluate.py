"""``headprune eval``."""

from typing import Any

from headprune.cli.options import Call
from headprune.cli.settings import Model

OPTIONS: dict[str, Any] = {"model": Model}


def command(call: Call) -> None:
    """Measure a model, pruned or not: metric with interval, size, latency."""
    from headprune import pipeline
    from headprune.report.terminal import eval_table

    result = pipeline.evaluate(call.recipe, voice=call.talk)
    call.write(result.to_json()) if call.json else call.show(eval_table(result))
