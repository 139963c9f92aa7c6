"""``analyze``: what every head does, from one pass over the rows, made-up sequences, and weights."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from headprune.analysis.catalogue import ROLES, Role, get_role
from headprune.analysis.request import RoleRequest, measure
from headprune.analysis.roles import Roles
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import AnalyzeSpec, Settings
from headprune.errors import PlanError
from headprune.passes import Progress
from headprune.placement import input_device, versions
from headprune.runs import FOLDER, ROLES_FILE, unused_run, write_roles
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.rows import Rows, rows_without_labels
from headprune.workflows.score import resumable
from headprune.workflows.session import Session, open_session


def analyze(
    settings: Settings, *, progress: Progress, world: World | None = None
) -> tuple[Roles, Path | None]:
    """Measure what every head does, and write ``roles.json``.

    Args:
        settings: The settings; ``role`` says which roles are measured (by default all that the model and the data allow).
        progress: Where progress is reported.
        world: The processes that share the work. The first one writes; the others return no path.

    Raises:
        ConfigError: There is no such role.
        PlanError: No role that was asked for can be measured.
    """
    world = world or World()
    settings = with_recorded_rows(settings, progress=progress)
    chosen = [get_role(name) for name in settings.analyze.role] or list(ROLES.values())
    run_dir = settings.run.run_dir
    with unused_run(run_dir, file=ROLES_FILE) if world.is_main else nullcontext():
        session = open_session(settings, progress=progress, world=world)
        _ = session.anatomy
        rows = None
        if any(role.reads == "rows" for role in chosen):
            most = settings.score.num_samples
            rows = rows_without_labels(session, min(most, settings.data.limit or most))
        roles, journal = measure_roles(session, chosen, rows, spec=settings.analyze)
        if not roles.measures:
            reasons = "; ".join(f"{name}: {why}" for name, why in roles.undefined.items())
            raise PlanError(
                f"none of these roles can be measured: {reasons}",
                where="`role`",
                hint="headprune roles says what each needs",
            )
        if not world.is_main:
            return roles, None
        path = write_roles(roles, run_dir)
        journal.drop()
        return roles, path


def measure_roles(
    session: Session, chosen: Sequence[Role], rows: Rows | None, *, spec: AnalyzeSpec
) -> tuple[Roles, Journal]:
    """Return what heads do, by the roles chosen, and the journal of the work, from which a stopped run goes on.

    Args:
        session: The model, with its settings.
        chosen: The roles.
        rows: What is looked at; None, where no role reads rows.
        spec: What is made up.
    """
    batches = session.batches(rows.examples) if rows else ()
    journal = _journal(session, batches, spec)
    if done := journal.count():
        session.progress.notify(f"going on with a run that was stopped; batches done: {done}")
    request = RoleRequest(
        session.model,
        session.anatomy,
        batches,
        session.tokenizer,
        spec,
        session.settings.data.seed,
        session.task.row.reads_forward,
        session.context(journal),
    )
    with resumable(journal, session.progress):
        roles = measure(request, chosen)
    note = {"data": dict(rows.note) if rows else {}, "model": session.note}
    return roles.model_copy(update=note), journal


def _journal(session: Session, batches: Sequence[Batch], spec: AnalyzeSpec) -> Journal:
    settings = session.settings
    facts = {
        "analyze": spec.model_dump(exclude={"role"}),
        "seed": settings.data.seed,
        "heads": [str(head) for head in session.anatomy.heads],
        "model": session.note,
        "batches": fingerprint_of_batches(batches) if batches else None,
        "device": input_device(session.model).type,
        "versions": versions(),
    }
    return open_journal(Path(settings.run.run_dir or FOLDER), facts=facts)
