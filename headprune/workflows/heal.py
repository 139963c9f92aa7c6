"""``heal``: a pruned model learns from the one it came from; measured before and after, proven, and saved anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from headprune.anatomy import Anatomy
from headprune.artefact import Heal, Proof
from headprune.batch import Batch
from headprune.config import Settings
from headprune.distillation.settings import (
    Checkpoints,
    last_checkpoint,
    open_checkpoints,
    refuse_adapters,
    trainer_settings,
)
from headprune.distillation.teacher import DistillJob, distance_between, mean_distance
from headprune.errors import ConfigError, DataError, ModelError
from headprune.evaluation import metric_with_interval
from headprune.inspection import inspect
from headprune.models.manifest import refuse_unusable_output
from headprune.passes import Progress
from headprune.placement import choose_device, versions, weights_bytes
from headprune.plans import PruningPlan
from headprune.results import Results
from headprune.runs import FOLDER
from headprune.runtime.targets import exclusive
from headprune.tasks.rows import Example, noted_rows
from headprune.verify import heads_are_the_same, require
from headprune.workflows.evaluate import measure
from headprune.workflows.finish import (
    PROOF_ROWS,
    InMemory,
    Written,
    documents_of,
    finish,
    refuse_output,
)
from headprune.workflows.record import note_where, record_of, with_recorded_rows
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.session import Session, open_session
from headprune.workflows.teacher import Teacher, open_teacher, refuse_other_words

_FEWEST = 8
_TRAINING = Purpose(use="train", labelled=False, held_out=0.1)
_LEARNING_RATE = 5e-5
_LEARNING_RATE_OF_ADAPTERS = 1e-3


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What is known before the training: student, teacher and rows."""

    session: Session
    teacher: Teacher
    anatomy: Anatomy
    parts: RowParts

    @cached_property
    def sample(self) -> Batch:
        """A few rows that report, to prove on."""
        return self.session.batches(self.parts.report.examples)[-1].take(PROOF_ROWS)

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Return the inputs of some examples, in one batch.

        Raises:
            ModelError: They differ in length, and the model doesn't support padding.
        """
        batches = self.session.batches(list(examples), batch_size=len(examples))
        if len(batches) > 1:
            raise ModelError(
                "texts of different length can't be trained on together: padding changes what this model puts out",
                where="`batch_size`",
                hint="use `batch_size=1` (and `trainer=gradient_accumulation_steps=16`, say)",
            )
        return batches[0].inputs


def heal(settings: Settings, *, resume: bool, progress: Progress) -> Results:
    """Train a pruned model towards its source (or go on from the last checkpoint of that), measure, prove and save.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    settings = with_recorded_rows(settings, progress=progress)
    run = settings.run
    out = Path(run.out or "")
    refuse_unusable_output(out, overwrite=run.overwrite, notify=progress.notify)
    folder = Path(run.run_dir) if run.run_dir else FOLDER / f"heal-{out.name}"
    arguments = _arguments(settings, folder)
    with exclusive(folder, where=f"`run_dir={folder}`"):
        lesson = _prepare(settings, progress=progress)
        if arguments.per_device_train_batch_size > 1:
            lesson.collate(lesson.parts.calibrate.examples)  # a refusal comes before the training
        checkpoints = open_checkpoints(folder, facts=_facts(lesson), resume=resume)
        if checkpoints.last is not None:
            progress.notify(f"going on from {checkpoints.last}")
        results = _heal(lesson, arguments, checkpoints)
        if run.run_dir is None:
            checkpoints.drop()
        return results


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    """Return Trainer's arguments; a mistake in them is found before anything is loaded."""
    spec, device = settings.distill, settings.model.device
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(
            f"heal can't train on {device!r}: Trainer takes the first device of a kind",
            where="`device`",
            hint="use auto, cpu, cuda or mps; CUDA_VISIBLE_DEVICES=1 makes another GPU the first",
        )
    usual = _LEARNING_RATE if spec.lora is None else _LEARNING_RATE_OF_ADAPTERS
    own = {
        "num_train_epochs": spec.epochs,
        "max_steps": spec.max_steps,
        "learning_rate": spec.learning_rate or usual,
        "per_device_train_batch_size": settings.data.batch_size,
        "seed": settings.data.seed,
    }
    kind = choose_device(device).type
    return trainer_settings(pairs=spec.trainer, own=own, folder=folder, device=kind)


def _prepare(settings: Settings, *, progress: Progress) -> _Lesson:
    session = open_session(settings, progress=progress)
    refuse_output(settings.run, source=session.source.directory)
    teacher = open_teacher(session)
    anatomy = inspect(session.model)
    if settings.distill.lora is not None:
        refuse_adapters(anatomy)
    parts = separate_rows(session, _TRAINING)
    examples = parts.calibrate.examples
    refuse_other_words(session, teacher, examples[:_FEWEST])
    if len(examples) < _FEWEST:
        raise DataError(
            f"{len(examples)} rows are too few to train on",
            where="`data`",
            hint=f"give {_FEWEST} or more (`num_samples`)",
        )
    return _Lesson(session, teacher, anatomy, parts)


def _facts(lesson: _Lesson) -> dict[str, Any]:
    """Return the facts that identify a training: model, rows and settings."""
    settings = lesson.session.settings
    names = {"epochs", "max_steps", "learning_rate", "lora", "trainer"}
    return {
        "model": lesson.session.note["fingerprint"],
        "teacher": lesson.teacher.note["fingerprint"],
        "rows": lesson.parts.calibrate.note,
        "settings": {
            **settings.distill.model_dump(mode="json", include=names),
            **settings.data.model_dump(mode="json", include={"batch_size", "seed"}),
        },
        "device": lesson.session.model.device.type,
        "versions": versions(),
    }


def _heal(lesson: _Lesson, arguments: TrainingArguments, checkpoints: Checkpoints) -> Results:
    session, parts = lesson.session, lesson.parts
    settings, source = session.settings, session.source
    heads = len(lesson.anatomy.heads)
    before, old = measure(session, parts.report, heads=heads, timed=False, note=session.note)
    healed, proofs = _train(lesson, arguments, checkpoints)
    after, new = measure(session, parts.report, heads=heads, timed=False)
    seed = settings.data.seed
    difference = metric_with_interval(new, session.metric, seed=seed, other=old)
    anatomy = inspect(session.model)
    proofs = (*proofs, heads_are_the_same(lesson.anatomy, anatomy))
    require(proofs)

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(heads, len(anatomy.heads)),
            parameters=(before.parameters, after.parameters),
            before=before,
            after=after,
            difference=difference.value,
            difference_interval=difference.interval,
            proofs=(*proofs, *written.proofs),
            weights_bytes=(weights_bytes(source.directory), size),
            removed=(),
            loads_with=written.loads_with,
            auto_class=session.task.auto_class,
            calibration=parts.calibrate.note,
            heal=healed,
        )

    session.progress.notify("saving it, and loading it again in a fresh process")
    in_memory = InMemory(
        session.model,
        anatomy,
        source.root,
        splitter=session.tokenizer,
        inputs=lesson.sample.inputs,
        auto_class=session.task.auto_class,
        parameters=(before.parameters, 0),
    )
    return finish(
        Path(settings.run.out or ""),
        overwrite=settings.run.overwrite,
        write=in_memory.write,
        results=results,
        documents=partial(_documents, lesson),
    )


def _train(
    lesson: _Lesson, arguments: TrainingArguments, checkpoints: Checkpoints
) -> tuple[Heal, tuple[Proof, ...]]:
    from headprune.distillation.trainer import train  # it imports Trainer, which takes long

    session, teacher, parts = lesson.session, lesson.teacher, lesson.parts
    notify, lora = session.progress.notify, session.settings.distill.lora
    distance = distance_between(session.task.distillation, teacher.task.distillation)
    unseen = session.batches(parts.held_out)
    job = DistillJob(
        teacher=teacher.model,
        examples=parts.fit,
        held_out=parts.held_out,
        collate=lesson.collate,
        distance=distance,
        arguments=arguments,
        lora=lora,
        checkpoint=checkpoints.last,
        notify=notify,
        sample=lesson.sample.inputs,
    )
    start = mean_distance(session.model, teacher.model, batches=unseen, distance=distance)
    notify(f"healing on {len(parts.fit):,} rows")
    try:
        trained = train(session.model, lesson.anatomy, job)
    except KeyboardInterrupt as stopped:
        if last_checkpoint(checkpoints.folder) is not None:
            stopped.add_note(
                f"checkpoints are in {checkpoints.folder}; `resume` goes on from the last"
            )
        raise
    end = mean_distance(session.model, teacher.model, batches=unseen, distance=distance)
    if end >= start:
        notify(
            f"careful: it didn't heal: the loss on {len(parts.held_out):,} rows that it wasn't trained on "
            f"was {start:.4g} and is {end:.4g}"
        )
    healed = Heal(
        teacher=teacher.note,
        objective=session.task.row.distance,
        trained_on=len(parts.fit),
        held_out=len(parts.held_out),
        loss=(start, end),
        steps=trained.steps,
        lora=lora,
        settings=_noted_settings(session.settings, arguments),
        rows=noted_rows(parts.calibrate.examples, earlier=session.used_rows),
    )
    return healed, trained.proofs


def _noted_settings(settings: Settings, arguments: TrainingArguments) -> dict[str, Any]:
    """Return the settings that matter most, and the other settings that the user gave."""
    given = [pair.partition("=")[0].strip().replace("-", "_") for pair in settings.distill.trainer]
    values = arguments.to_dict()
    names = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
    return {name: values[name] for name in (*names, *given) if name in values}


def _documents(lesson: _Lesson, results: Results) -> dict[str, str]:
    """Return the files that describe the model; plan, scores and roles are copied from the pruned directory."""
    source, settings = lesson.session.source, lesson.session.settings
    note_where(settings, results=results, model=lesson.session.note)
    kept = {str(site.id): len(site.heads) for site in lesson.anatomy.sites}
    plan = PruningPlan(remove=(), kept_per_site=kept)
    texts = documents_of(results, plan, None, source=source, settings=record_of(settings))
    del texts["plan.json"]
    for name in ("scores.json", "roles.json", "plan.json"):
        if (source.directory / name).is_file():
            texts[name] = (source.directory / name).read_text(encoding="utf-8")
    return texts
