"""``analyze``: what every head does, from one pass over the rows, made-up sequences, and weights."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, Reads, Role, get_role
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.roles import Measure, Roles, decided, rule_of
from headprune.analysis.statistics import measure_attention
from headprune.analysis.trees import SUFFIX, read_sentences, sentence_batches
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Settings
from headprune.errors import PlanError, UnsupportedError
from headprune.passes import Progress
from headprune.placement import input_device, versions
from headprune.runs import FOLDER, ROLES_FILE, unused_run, write_roles
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.runtime.local import published_name
from headprune.tasks.rows import Example, draw, fingerprint
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.rows import rows_without_labels
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
    rows, batches, vocabulary = _rows(session, {role.reads for role in chosen})
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


def _on_trees(
    session: Session,
    roles: Sequence[Role],
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    journal: Journal,
) -> tuple[Measure, ...]:
    """Measure on parsed sentences.

    Raises:
        UnsupportedError: The data isn't parsed.
    """
    if not vocabulary.trees:
        raise UnsupportedError(
            f"it takes parsed sentences, a {SUFFIX} file",
            where="`data`",
            hint="universaldependencies.org has them in many languages",
        )
    return _on_rows(session, roles, batches, vocabulary, journal)


def _rows(
    session: Session, reads: Collection[Reads]
) -> tuple[dict[str, Any], Sequence[Batch], Vocabulary]:
    """Return the facts about the rows, the rows as batches, and what is known of their tokens; nothing where none are read."""
    settings = session.settings
    most = min(settings.score.num_samples, settings.data.limit or settings.score.num_samples)
    if not {"rows", "trees"} & set(reads) or settings.data.data is None:
        return {}, (), Vocabulary.of(session.tokenizer, ())
    path = Path(settings.data.data)
    if path.suffix != SUFFIX:
        rows = rows_without_labels(session, most)
        batches = session.batches(rows.examples)
        return dict(rows.note), batches, Vocabulary.of(session.tokenizer, batches)
    examples = {Example(texts=(one.text,)): one for one in read_sentences(path)}
    drawn = draw(tuple(examples), most, seed=settings.data.seed)
    sentences = [examples[example] for example in drawn]
    config = session.model.config
    start = getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None
    batches, trees = sentence_batches(
        sentences, session.tokenizer, max_length=session.max_length, decoder_start=start
    )
    relations = sorted({name for one in sentences for name in one.relations})
    vocabulary = Vocabulary.of(session.tokenizer, batches)
    note = {
        "name": published_name(path.name),
        "task": session.task.name,
        "max_length": session.max_length,
        "fingerprint": fingerprint(drawn),
        "n": len(drawn),
    }
    return note, batches, replace(vocabulary, trees=trees, relations=tuple(relations))


_MEASURE: dict[Reads, Measuring] = {
    "rows": _on_rows,
    "repeats": _on_repeats,
    "trees": _on_trees,
}
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
