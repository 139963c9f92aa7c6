"""``headprune inspect``."""

from typing import Any

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, Gqa, Keep, MinHeads, MultipleOf, Protect, Sites, Uniform

OPTIONS: dict[str, Any] = {
    **MODEL,
    "keep": Keep,
    "gqa": Gqa,
    "sites": Sites,
    "min_heads": MinHeads,
    "multiple_of": MultipleOf,
    "protect": Protect,
    "uniform": Uniform,
}


def command(call: Call) -> None:
    """Show where a model's heads are, what can't be pruned and why, and what pruning would save; config.json is enough."""
    from headprune.report.heads import survey_table
    from headprune.workflows.inspect import inspect

    found = inspect(call.settings, progress=call.talk)
    call.write(found.to_json()) if call.json else call.show(survey_table(found))
