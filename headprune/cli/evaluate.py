"""``headprune eval``."""

from typing import Any

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, ROWS, TIMES, WORK

OPTIONS: dict[str, Any] = {**MODEL, **ROWS, **WORK, **TIMES}


def command(call: Call) -> None:
    """Measure a model, pruned or not: metric with interval, size, latency."""
    from headprune.report.tables import eval_table
    from headprune.workflows.evaluate import evaluate

    result = evaluate(call.settings, progress=call.talk)
    call.write(result.to_json()) if call.json else call.show(eval_table(result))
