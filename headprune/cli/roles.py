"""Commands that show what heads do."""

from headprune.analysis.catalogue import ROLES
from headprune.cli.commands import list_rows
from headprune.cli.options import Call


def analyze(call: Call) -> None:
    """Show what every head does: sinks, positions, induction, ... with baselines, intervals and published thresholds."""
    from headprune.report.roles import relations_table, roles_map, roles_table
    from headprune.runtime.distributed import join_world, leave_world
    from headprune.workflows.analyze import analyze as analyze_model

    world = join_world(cpu=call.settings.model.device == "cpu")
    roles, path = analyze_model(call.settings, progress=call.progress, world=world)
    leave_world(world)
    if path is None:
        return
    if call.own.as_json:
        call.write(roles.to_json())
    else:
        call.show(roles_map(roles))
        call.show("")
        call.show(roles_table(roles))
        if (relations := relations_table(roles)) is not None:
            call.show("")
            call.show(relations)
    call.progress.notify(f"written: {path}")


def view(call: Call) -> None:
    """Draw what every head looks at in a text, as one page that a browser opens from disk."""
    from headprune.report.roles import view_table
    from headprune.workflows.view import Viewed
    from headprune.workflows.view import view as view_text

    own, settings = call.own, call.settings
    viewed = Viewed(own.shown_text or "", own.text_pair, own.layers, own.roles)
    if "out" not in call.given:  # a file's is where a model goes
        settings = settings.replaced(out=None)
    maps, path = view_text(settings, viewed, progress=call.progress)
    call.write(maps.to_json()) if own.as_json else call.show(view_table(maps))
    call.progress.notify(f"written: {path}")


def compare(call: Call) -> None:
    """Compare what heads do and how much they matter, across models, before and after pruning, or across sets of rows."""
    from headprune.report.compare import comparison_tables
    from headprune.workflows.compare import compare_documents

    comparison, path = compare_documents(call.own.documents, run_dir=call.settings.run.run_dir)
    if call.own.as_json:
        call.write(comparison.to_json())
    else:
        call.show(comparison_tables(comparison))
    call.progress.notify(f"written: {path}")


def roles(call: Call) -> None:
    """List the roles of heads: what each says of a head, and from when on a head has it."""
    list_rows(call, ROLES, columns=("help", "reads", "threshold"))
