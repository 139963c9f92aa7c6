"""``analyze``: what every head does, from one pass over the rows, made-up sequences, and weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, Reads, Role, get_role
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.roles import Measure, Roles, decided, rule_of
from headprune.analysis.statistics import measure_attention
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Settings
from headprune.errors import PlanError, UnsupportedError
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
    most = session.settings.score.num_samples
    count = min(most, session.settings.data.limit or most)
    reads_rows = any(role.reads == "rows" for role in chosen)
    rows = rows_without_labels(session, count) if reads_rows else None
    batches = session.batches(rows.examples) if rows else ()
    vocabulary = Vocabulary.of(session.tokenizer, batches)
    journal = _journal(session, batches)
    if done := journal.count():
        session.progress.notify(f"going on with a run that was stopped; batches done: {done}")
    measures: list[Measure] = []
    undefined: dict[str, str] = {}
    with resumable(journal, session.progress):
        for reads, measure in _MEASURE.items():
            asked = [role for role in chosen if role.reads == reads]
            if not asked:
                continue
            try:
                measures += measure(session, asked, batches, vocabulary, journal)
            except UnsupportedError as error:
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
    return _document(session, measures, undefined, rows), journal


def _on_rows(
    session: Session,
    roles: Sequence[Role],
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    journal: Journal,
) -> tuple[Measure, ...]:
    return measure_attention(
        session.model,
        session.anatomy,
        roles,
        batches=batches,
        vocabulary=vocabulary,
        context=session.context(journal),
        name="what heads look at",
    )


def _on_repeats(
    session: Session,
    roles: Sequence[Role],
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    journal: Journal,
) -> tuple[Measure, ...]:
    """Measure on random tokens said twice, which a causal model alone can use.

    Raises:
        UnsupportedError: The model isn't one.
    """
    if not session.task.row.reads_forward:
        raise UnsupportedError(
            "only a causal language model reads made-up sequences",
            where=session.source.name,
            hint="leave the role out",
        )
    del batches
    settings, tokenizer = session.settings, session.tokenizer
    taken = session.model.config.get_text_config()
    longest = (
        getattr(taken, "max_position_embeddings", None) or 2 * settings.analyze.sequence_length + 1
    )
    sequences = repeated_sequences(
        vocabulary=min(len(tokenizer), taken.vocab_size),
        special=tokenizer.all_special_ids,
        start=tokenizer.bos_token_id,
        length=min(settings.analyze.sequence_length, (longest - 1) // 2),
        count=settings.analyze.num_sequences,
        seed=settings.data.seed,
    )
    return measure_attention(
        session.model,
        session.anatomy,
        roles,
        batches=sequences,
        vocabulary=vocabulary,
        context=session.context(journal),
        name="random tokens said twice",
    )


Measuring = Callable[
    [Session, Sequence[Role], Sequence[Batch], Vocabulary, Journal], tuple[Measure, ...]
]

_MEASURE: dict[Reads, Measuring] = {"rows": _on_rows, "repeats": _on_repeats}
"""How roles are measured, by what they read."""


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
    session: Session, measures: Sequence[Measure], undefined: dict[str, str], rows: Rows | None
) -> Roles:
    names = dict.fromkeys(one.role for one in measures)
    return Roles(
        heads=session.anatomy.heads,
        measures=decided(measures),
        undefined=undefined,
        thresholds={name: rule for name in names if (rule := rule_of(ROLES[name]))},
        seed=session.settings.data.seed,
        data=dict(rows.note) if rows else {},
        model=session.note,
        versions=versions(),
    )
