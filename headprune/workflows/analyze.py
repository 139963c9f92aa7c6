"""``analyze``: what every head does, from one pass over the rows, made-up sequences, and weights."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from headprune.analysis.catalogue import ROLES, Role, get_role
from headprune.analysis.roles import Measure, Roles, decided, rule_of
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Settings
from headprune.errors import DataError, PlanError, UnsupportedError
from headprune.passes import Progress
from headprune.placement import input_device, versions
from headprune.runs import FOLDER, ROLES_FILE, unused_run, write_roles
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.roles import MEASURE, Material, rows_to_look_at
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
        roles, journal = measure_roles(session, chosen)
        if not world.is_main:
            return roles, None
        path = write_roles(roles, run_dir)
        journal.drop()
        return roles, path


def measure_roles(session: Session, chosen: Sequence[Role]) -> tuple[Roles, Journal]:
    """Return what heads do, by the roles chosen, and the journal of the work.

    Args:
        session: The model, with its settings.
        chosen: The roles.

    Raises:
        PlanError: None of them can be measured.
    """
    note, batches, vocabulary = rows_to_look_at(session, {role.reads for role in chosen})
    journal = _journal(session, batches)
    material = Material(session, batches, vocabulary, session.context(journal))
    if done := journal.count():
        session.progress.notify(f"going on with a run that was stopped; batches done: {done}")
    measures: list[Measure] = []
    undefined: dict[str, str] = {}
    with resumable(journal, session.progress):
        for reads, measure in MEASURE.items():
            asked = [role for role in chosen if role.reads == reads]
            if not asked:
                continue
            try:
                measures += measure(material, asked)
            except (UnsupportedError, DataError) as error:
                undefined |= {role.name: error.what for role in asked}
    measured = {one.role for one in measures}
    for role in chosen:
        if role.name not in measured:
            undefined.setdefault(role.name, "the model has no such positions or tokens")
    if not measures:
        raise PlanError(
            "none of these roles can be measured: "
            + "; ".join(f"{name}: {reason}" for name, reason in undefined.items()),
            where="`role`",
            hint="headprune roles says what each needs",
        )
    order = list(ROLES)
    measures.sort(key=lambda one: order.index(one.role))
    return _document(session, measures, undefined, note), journal


def _journal(session: Session, batches: Sequence[Batch]) -> Journal:
    settings = session.settings
    facts = {
        "analyze": settings.analyze.model_dump(exclude={"role"}),
        "seed": settings.data.seed,
        "heads": [str(head) for head in session.anatomy.heads],
        "model": session.note,
        "batches": fingerprint_of_batches(batches) if batches else None,
        "device": input_device(session.model).type,
        "versions": versions(),
    }
    return open_journal(Path(settings.run.run_dir or FOLDER), facts=facts)


def _document(
    session: Session, measures: Sequence[Measure], undefined: dict[str, str], note: dict[str, Any]
) -> Roles:
    names = dict.fromkeys(one.role for one in measures)
    return Roles(
        heads=session.anatomy.heads,
        measures=decided(measures),
        undefined=undefined,
        thresholds={name: rule for name in names if (rule := rule_of(ROLES[name]))},
        seed=session.settings.data.seed,
        data=note,
        model=session.note,
        versions=versions(),
    )
