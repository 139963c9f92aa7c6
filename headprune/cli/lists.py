"""Commands that list a catalogue."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from headprune.analysis.catalogue import ROLES
from headprune.cli.options import Call, as_options
from headprune.scoring.catalogue import METHODS
from headprune.tasks.catalogue import METRICS, TASKS


def methods(call: Call) -> None:
    """List the scoring methods: what each says of a head, and what it costs."""
    _list_rows(call, METHODS, columns=("help", "cost", "use"))


def tasks(call: Call) -> None:
    """List the tasks: what each measures, and its default metric."""
    _list_rows(call, TASKS, columns=("help", "metric"))


def metrics(call: Call) -> None:
    """List the built-in metrics: what each says, and which direction is better."""
    _list_rows(call, METRICS, columns=("help", "higher_is_better"))


def roles(call: Call) -> None:
    """List the roles of heads: what each says of a head, and from when on a head has it."""
    _list_rows(call, ROLES, columns=("about", "reads", "rule"))


def _list_rows(call: Call, rows: Mapping[str, Any], *, columns: tuple[str, ...]) -> None:
    """Show some columns of a catalogue, or all of it as one JSON document."""
    from headprune.artefact import dump_json
    from headprune.report.terminal import Row, Sheet

    if call.own.as_json:
        call.write(dump_json({"format": 1, "rows": [asdict(row) for row in rows.values()]}))
        return
    cells = [
        (name, *(as_options(str(getattr(row, column))) for column in columns))
        for name, row in rows.items()
    ]
    titles = ("name", *(column.replace("_", " ") for column in columns))
    call.show(Sheet([Row(row) for row in cells], titles=titles, prose=1))
