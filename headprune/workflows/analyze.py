"""``analyze``: what every head does, from one pass over the rows, made-up sequences, and weights."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, Reads, Role, get_role
from headprune.analysis.likeness import Similarity
from headprune.analysis.request import RoleRequest, measure
from headprune.analysis.roles import Roles
from headprune.analysis.similarity import closest, compare_heads, successors
from headprune.analysis.trees import SUFFIX, read_sentences, sentence_batches
from headprune.artefact import read_artefact
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import AnalyzeSpec, Settings
from headprune.errors import DataError, PlanError
from headprune.heads import HeadId, select_heads
from headprune.passes import Progress, resumable
from headprune.placement import input_device, versions
from headprune.plans import PruningPlan
from headprune.runs import FOLDER, ROLES_FILE, SIMILARITY_FILE, unused_run, write_roles
from headprune.runtime.distributed import World
from headprune.runtime.files import write_text
from headprune.runtime.journal import Journal, open_journal
from headprune.runtime.local import published_name
from headprune.tasks.rows import Example, draw, fingerprint
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.rows import rows_without_labels
from headprune.workflows.session import Session, open_session


def analyze(
    settings: Settings, *, progress: Progress, world: World | None = None
) -> tuple[Roles, Similarity | None, Path | None]:
    """Measure what every head does, and write ``roles.json``; where it is asked for, how alike heads are, ``similarity.json``.

    Args:
        settings: The settings; ``role`` says which roles are measured (by default all that the model and the data allow).
        progress: Where progress is reported.
        world: The processes that share the work. The first one writes; the others return no path.

    Raises:
        ConfigError: There is no such role.
        PlanError: No role that was asked for can be measured, or the plan removes heads that the model doesn't have.
    """
    world = world or World()
    settings = with_recorded_rows(settings, progress=progress)
    run_dir = settings.run.run_dir
    with unused_run(run_dir, file=ROLES_FILE) if world.is_main else nullcontext():
        found = look(settings, progress=progress, world=world)
        if not world.is_main:
            return found.roles, found.similarity, None
        path = found.write(run_dir)
        found.discard_journal()
        return found.roles, found.similarity, path


@dataclass(frozen=True, eq=False)
class Analyzed:
    """What heads do, how alike they are where that was asked for, and the journal of the work."""

    roles: Roles
    similarity: Similarity | None
    journal: Journal | None

    def write(self, run_dir: str | None) -> Path:
        """Write the documents to ``run_dir``, or to the next numbered directory; returns ``roles.json``."""
        path = write_roles(self.roles, run_dir)
        if self.similarity is not None:
            similarity = self.similarity.to_json()
            write_text(path.with_name(SIMILARITY_FILE), similarity, overwrite=False)
        return path

    def discard_journal(self) -> None:
        """Delete the journal, which an interrupted run would resume from."""
        if self.journal is not None:
            self.journal.drop()


def look(settings: Settings, *, progress: Progress, world: World) -> Analyzed:
    """Measure what every head does, and write nothing."""
    chosen = [get_role(name) for name in settings.analyze.role] or list(ROLES.values())
    spec = settings.analyze
    plan = read_artefact(PruningPlan, Path(spec.plan)) if spec.plan else None
    session = open_session(settings, progress=progress, world=world, looks=True)
    removed = select_heads(plan.remove if plan else (), session.anatomy.heads)
    seen = _seen(session, {role.reads for role in chosen})
    if spec.similarity and not seen.batches:
        what = "there are no rows to compare heads on"
        raise PlanError(what, where="`similarity`", hint="name some: `data`")
    roles, journal = measure_roles(session, chosen, seen, spec=spec)
    if not roles.measures:
        reasons = "; ".join(f"{name}: {why}" for name, why in roles.undefined.items())
        raise PlanError(
            f"none of these roles can be measured: {reasons}",
            where="`role`",
            hint="headprune roles says what each needs",
        )
    similarity = _compared(session, seen, removed, journal) if spec.similarity else None
    return Analyzed(roles, similarity, journal)


@dataclass(frozen=True, eq=False)
class Seen:
    """What is looked at: facts about the rows, the rows as batches, and what is known of their tokens."""

    note: dict[str, Any] = field(default_factory=dict)
    batches: Sequence[Batch] = ()
    vocabulary: Vocabulary = field(default_factory=Vocabulary)


def measure_roles(
    session: Session,
    chosen: Sequence[Role],
    seen: Seen,
    *,
    spec: AnalyzeSpec,
    keep_parts: bool = True,
) -> tuple[Roles, Journal | None]:
    """Return what heads do, by the roles chosen, and the journal of the work, from which a stopped run goes on.

    Args:
        session: The model, with its settings.
        chosen: The roles.
        seen: What is looked at.
        spec: What is made up.
        keep_parts: Whether there is a journal.
    """
    journal = _journal(session, seen.batches, spec) if keep_parts else None
    if done := journal.count() if journal else 0:
        session.progress.notify(f"going on with a run that was stopped; batches done: {done}")
    request = RoleRequest(
        session.model,
        session.anatomy,
        seen.batches,
        seen.vocabulary,
        session.tokenizer,
        spec,
        session.settings.data.seed,
        session.task.row.reads_forward,
        session.context(journal),
    )
    with resumable(journal, session.progress):
        roles = measure(request, chosen)
    note = {"data": seen.note, "model": session.note}
    return roles.model_copy(update=note), journal


def _seen(session: Session, reads: Collection[Reads]) -> Seen:
    """Return the rows that are looked at; nothing where none are read."""
    settings = session.settings
    most = min(settings.score.num_samples, settings.data.limit or settings.score.num_samples)
    reads_rows = settings.analyze.similarity or not set(reads) <= {"repeats", "weights"}
    if not reads_rows or settings.data.data is None:
        return Seen()
    path = Path(settings.data.data)
    if path.suffix != SUFFIX:
        rows = rows_without_labels(session, most)
        batches = session.batches(rows.examples)
        return Seen(dict(rows.note), batches, Vocabulary.of(session.tokenizer, batches))
    if settings.data.where is not None:
        raise DataError(
            "parsed sentences have no columns",
            where="`where`",
            hint="leave it out, or keep the sentences in files of their own",
        )
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
    return Seen(note, batches, replace(vocabulary, trees=trees, relations=tuple(relations)))


def _compared(
    session: Session, seen: Seen, removed: Sequence[HeadId], journal: Journal | None
) -> Similarity:
    """Return how alike heads are, and which kept ones are nearest to those that are removed."""
    context = session.context(journal)
    with resumable(journal, session.progress):
        groups = compare_heads(session.model, session.anatomy, seen.batches, context=context)
    return Similarity(
        groups=groups,
        closest=closest(groups),
        successors=successors(groups, removed),
        data=seen.note,
        model=session.note,
        versions=versions(),
    )


def _journal(session: Session, batches: Sequence[Batch], spec: AnalyzeSpec) -> Journal:
    settings = session.settings
    facts = {
        "analyze": spec.model_dump(exclude={"role", "similarity", "plan"}),
        "seed": settings.data.seed,
        "heads": [str(head) for head in session.anatomy.heads],
        "model": session.note,
        "batches": fingerprint_of_batches(batches) if batches else None,
        "device": input_device(session.model).type,
        "versions": versions(),
    }
    return open_journal(Path(settings.run.run_dir or FOLDER), facts=facts)
