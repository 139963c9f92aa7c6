"""``headprune inspect``."""

from headprune.cli.options import Call


def inspect(call: Call) -> None:
    """Show where a model's heads are, what can't be pruned and why, and what pruning would save; config.json is enough."""
    from headprune.report.heads import survey_table
    from headprune.workflows.inspect import inspect as inspect_model

    survey = inspect_model(call.settings, progress=call.progress)
    call.write(survey.to_json()) if call.own.as_json else call.show(survey_table(survey))
