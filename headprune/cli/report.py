"""Commands that make something of the documents of others: a report, a comparison."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headprune.cli.options import Call

if TYPE_CHECKING:
    from headprune.analysis.comparison import Comparison


def report(call: Call) -> None:
    """Make one HTML file of what lies in runs and pruned models: charts and tables, without model, data or network."""
    from headprune.artefact import dump_json
    from headprune.models.manifest import refuse_unusable_output
    from headprune.report.documents import read_documents
    from headprune.report.html import refuse_unusable_page, write_page
    from headprune.report.page import contents, page, write_pictures
    from headprune.report.terminal import key_value_table

    runs, pictures, run = call.own.runs, call.own.pictures, call.settings.run
    out = Path(run.out) if run.out else _beside(runs[0])
    refuse_unusable_page(out, command="report", overwrite=run.overwrite)
    if pictures is not None:
        refuse_unusable_output(pictures, overwrite=run.overwrite)
    documents = read_documents(runs)
    shown = contents(documents)
    write_page(page(documents, shown), out, command="report", overwrite=run.overwrite)
    names = [] if pictures is None else write_pictures(shown, pictures, overwrite=run.overwrite)
    if call.own.as_json:
        sections = [row.name for row in shown]
        files = {"report": str(out), "pictures": pictures and str(pictures), "charts": [*names]}
        call.write(dump_json({"format": 1, "sections": sections, **files}))
        return
    rows = {
        "report": str(out),
        "from": f"{len(documents.items)} documents",
        "sections": ", ".join(row.name for row in shown),
    }
    if pictures is not None:
        rows["pictures"] = f"{pictures}: {', '.join(names)} (png, svg)"
    call.show(key_value_table(rows))


def compare(call: Call) -> None:
    """Compare what heads do and how much they matter, across models, before and after pruning, or across sets of rows."""
    from headprune.workflows.compare import compare_documents

    run_dir = call.settings.run.run_dir
    comparison, path = compare_documents(call.own.runs, run_dir=run_dir)
    _show_comparison(call, comparison, path)


def measure_by_group(call: Call, command: Literal["score", "analyze"]) -> None:
    """Score or analyze every group of rows, and show what the groups have in common."""
    from headprune.runtime.distributed import launched_world
    from headprune.workflows.groups import measure_groups

    with launched_world(cpu=call.settings.model.device == "cpu") as world:
        measured = measure_groups(
            command, call.settings, call.own.by, progress=call.progress, world=world
        )
    if measured is not None:
        _show_comparison(call, *measured)


def _show_comparison(call: Call, comparison: "Comparison", path: Path) -> None:
    from headprune.report.compare import comparison_tables

    if call.own.as_json:
        call.write(comparison.to_json())
    else:
        call.show(comparison_tables(comparison))
    call.progress.notify(f"written: {path}")


def _beside(run: Path) -> Path:
    """Return where a report goes: beside its first run, never in a model's directory, whose manifest names all that is in it."""
    place = run.absolute()
    return run.parent / f"{place.name if run.is_dir() else place.stem}-report.html"
