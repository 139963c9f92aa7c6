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


def roles(call: Call) -> None:
    """List the roles of heads: what each says of a head, and from when on a head has it."""
    list_rows(call, ROLES, columns=("help", "reads", "threshold"))
