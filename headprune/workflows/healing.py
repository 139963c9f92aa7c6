"""``heal``: a pruned model learns from the one it came from; measured before and after, proven, and saved anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.config import Recipe
from headprune.distillation.adapters import refuse_adapters
from headprune.distillation.checkpoints import Checkpoints, last_checkpoint, open_checkpoints
from headprune.distillation.settings import trainer_settings
from headprune.distillation.teacher import DistillJob, Heal, distance_between, mean_distance
from headprune.errors import ConfigError, DataError, ModelError
from headprune.evaluation import metric_with_interval
from headprune.inspection import inspect
from headprune.models.facts import choose_device, fingerprint, versions, weights_bytes
from headprune.models.manifest import refuse_unusable_output
from headprune.plans import PruningPlan
from headprune.results import Results
from headprune.runs import FOLDER
from headprune.runtime.targets import exclusive
from headprune.subject import Progress, Rows, Subject, open_subject, rows_that_chose, separate_rows
from headprune.tasks.rows import Example, noted_rows, set_apart
from headprune.verify import Proof, heads_are_the_same, require
from headprune.workflows.commands import check_metric, refuse_output
from headprune.workflows.delivery import PROOF_ROWS, measure
from headprune.workflows.finish import InMemory, Written, documents_of, finish
from headprune.workflows.record import note_where, record_of, with_recorded_rows
from headprune.workflows.teacher import Teacher, open_teacher, refuse_other_words

_HELD_OUT = 0.1
_FEWEST = 8
_LEARNING_RATE = 5e-5
_LEARNING_RATE_OF_ADAPTERS = 1e-3
_RECORDS = ("scores.json", "plan.json")


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What is known before the training: who learns from whom, on what, and what it will be judged by."""

    subject: Subject
    teacher: Teacher
    anatomy: Anatomy
    training: Rows
    fitting: tuple[Example, ...]
    held_out: tuple[Example, ...]
    reporting: Rows
    chose: frozenset[str]

    @cached_property
    def sample(self) -> Batch:
        """A few rows that report, to prove on."""
        return self.subject.batches(self.reporting.examples)[-1].take(PROOF_ROWS)

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Return the inputs of some examples, in one batch.

        Raises:
            ModelError: They differ in length, and the model bears no padding.
        """
        made = self.subject.batches(examples, batch_size=len(examples))
        if len(made) > 1:
            raise ModelError(
                "texts of different length can't be trained on together: padding changes what this model puts out",
                where="--batch-size",
                hint="use --batch-size 1 (and --trainer gradient_accumulation_steps=16, say)",
            )
        return made[0].inputs


def heal(recipe: Recipe, *, resume: bool, progress: Progress) -> Results:
    """Train a pruned model towards its source, measure, prove and save.

    Args:
        recipe: The settings; ``out`` must be there.
        resume: Whether to go on from the last checkpoint of a training that was stopped.
        progress: How to talk meanwhile.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    recipe = with_recorded_rows(recipe, progress=progress)
    refuse_unusable_output(
        Path(recipe.out or ""), overwrite=recipe.overwrite, notify=progress.notify
    )
    check_metric(recipe)
    folder = (
        Path(recipe.run_dir) if recipe.run_dir else FOLDER / f"heal-{Path(recipe.out or '').name}"
    )
    arguments = _arguments(recipe, folder)
    with exclusive(folder, where=f"--run {folder}"):
        return _prepare_and_heal(recipe, arguments, folder, resume=resume, progress=progress)


def _prepare_and_heal(
    recipe: Recipe, arguments: TrainingArguments, folder: Path, *, resume: bool, progress: Progress
) -> Results:
    lesson = _prepare(recipe, progress=progress)
    if arguments.per_device_train_batch_size > 1:
        lesson.collate(lesson.training.examples)  # a refusal comes before the training
    checkpoints = open_checkpoints(folder, facts=_facts(lesson), resume=resume)
    if checkpoints.last is not None:
        progress.notify(f"going on from {checkpoints.last}")
    results = _heal(lesson, arguments, checkpoints, progress=progress)
    if recipe.run_dir is None:
        checkpoints.drop()
    return results


def _arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """Return what Trainer is told; a mistake is found before anything is loaded.

    Raises:
        ConfigError: There is one.
    """
    if recipe.device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(
            f"heal can't train on {recipe.device!r}: Trainer takes the first device of a kind",
            where="--device",
            hint="use auto, cpu, cuda or mps; CUDA_VISIBLE_DEVICES=1 makes another GPU the first",
        )
    usual = _LEARNING_RATE if recipe.lora is None else _LEARNING_RATE_OF_ADAPTERS
    own = {
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "learning_rate": recipe.learning_rate or usual,
        "per_device_train_batch_size": recipe.batch_size,
        "seed": recipe.seed,
    }
    device = choose_device(recipe.device).type
    return trainer_settings(pairs=recipe.trainer, own=own, folder=folder, device=device)


def _prepare(recipe: Recipe, *, progress: Progress) -> _Lesson:
    subject = open_subject(recipe, progress=progress)
    refuse_output(recipe, source=subject.source.directory)
    teacher = open_teacher(subject, progress=progress)
    anatomy = inspect(subject.model)
    if recipe.lora is not None:
        refuse_adapters(anatomy)
    chose = frozenset(rows_that_chose(subject))
    training, reporting = separate_rows(
        subject, progress=progress, chose=chose, use="train", labelled=False
    )
    examples = training.examples
    refuse_other_words(subject, teacher, examples[:_FEWEST])
    if len(examples) < _FEWEST:
        raise DataError(
            f"{len(examples)} rows are too few to train on",
            where="--data",
            hint=f"give {_FEWEST} or more (--num-samples)",
        )
    fitting = len(examples) - max(2, round(_HELD_OUT * len(examples)))
    return _Lesson(
        subject,
        teacher,
        anatomy,
        training,
        *set_apart(examples, fitting),
        reporting,
        chose,
    )


def _facts(lesson: _Lesson) -> dict[str, Any]:
    """Return what a training is defined by: another model, other rows or settings, and it is another one."""
    recipe = lesson.subject.recipe
    names = ("epochs", "max_steps", "learning_rate", "batch_size", "lora", "trainer", "seed")
    return {
        "model": fingerprint(lesson.subject.model),
        "teacher": lesson.teacher.note["fingerprint"],
        "rows": lesson.training.note,
        "settings": recipe.model_dump(mode="json", include=set(names)),
        "device": lesson.subject.model.device.type,
        "versions": versions(),
    }


def _heal(
    lesson: _Lesson, arguments: TrainingArguments, checkpoints: Checkpoints, *, progress: Progress
) -> Results:
    subject, recipe = lesson.subject, lesson.subject.recipe
    heads = len(lesson.anatomy.heads)
    before, old = measure(subject, lesson.reporting, heads=heads, progress=progress, timed=False)
    healed, proofs = _train(lesson, arguments, checkpoints, progress=progress)
    after, new = measure(subject, lesson.reporting, heads=heads, progress=progress, timed=False)
    difference = metric_with_interval(new, subject.statistic(), seed=recipe.seed, other=old)
    anatomy = inspect(subject.model)
    proofs = (*proofs, heads_are_the_same(lesson.anatomy, anatomy))
    require(proofs)
    source = subject.source

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
            auto_class=subject.task.auto_class,
            calibration=lesson.training.note,
            heal=healed,
        )

    progress.notify("saving it, and loading it again in a fresh process")
    smaller = InMemory(
        subject.model,
        anatomy,
        source.root,
        splitter=subject.tokenizer,
        inputs=lesson.sample.inputs,
        auto_class=subject.task.auto_class,
        parameters=(before.parameters, 0),
    )
    return finish(
        Path(recipe.out or ""),
        overwrite=recipe.overwrite,
        write=smaller.write,
        results=results,
        documents=partial(_documents, lesson),
    )


def _train(
    lesson: _Lesson, arguments: TrainingArguments, checkpoints: Checkpoints, *, progress: Progress
) -> tuple[Heal, tuple[Proof, ...]]:
    from headprune.distillation.trainer import train  # it imports Trainer, which takes long

    subject, teacher, recipe = lesson.subject, lesson.teacher, lesson.subject.recipe
    distance = distance_between(subject.task.distillation, teacher.task.distillation)
    unseen = subject.batches(lesson.held_out)
    job = DistillJob(
        teacher=teacher.model,
        examples=lesson.fitting,
        held_out=lesson.held_out,
        collate=lesson.collate,
        distance=distance,
        arguments=arguments,
        lora=recipe.lora,
        checkpoint=checkpoints.last,
        notify=progress.notify,
        sample=lesson.sample.inputs,
    )
    start = mean_distance(subject.model, teacher.model, batches=unseen, distance=distance)
    progress.notify(f"healing on {len(lesson.fitting):,} rows")
    try:
        trained = train(subject.model, lesson.anatomy, job)
    except KeyboardInterrupt as stopped:
        if last_checkpoint(checkpoints.folder) is not None:
            stopped.add_note(
                f"checkpoints are in {checkpoints.folder}; --resume goes on from the last"
            )
        raise
    end = mean_distance(subject.model, teacher.model, batches=unseen, distance=distance)
    told = f"on {len(lesson.held_out):,} rows that it wasn't trained on"
    if end >= start:
        progress.notify(
            f"careful: it didn't heal: the loss {told} was {start:.4g} and is {end:.4g}"
        )
    found = Heal(
        teacher=teacher.note,
        objective=subject.task.row.distance,
        trained_on=len(lesson.fitting),
        held_out=len(lesson.held_out),
        loss=(start, end),
        steps=trained.steps,
        lora=recipe.lora,
        settings=_settings(recipe, arguments),
        rows=noted_rows(lesson.training.examples, earlier=lesson.chose),
    )
    return found, trained.proofs


def _settings(recipe: Recipe, arguments: TrainingArguments) -> dict[str, Any]:
    """Return the settings that matter most, and what the user said besides."""
    said = [pair.partition("=")[0].strip().replace("-", "_") for pair in recipe.trainer]
    told = arguments.to_dict()
    names = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
    return {name: told[name] for name in (*names, *said) if name in told}


def _documents(lesson: _Lesson, results: Results) -> dict[str, str]:
    """Return what describes the model; which heads were removed, and why, is as its own directory says."""
    source, recipe = lesson.subject.source, lesson.subject.recipe
    if results.before is not None:
        note_where(recipe, results=results, model=results.before.model)
    kept = {str(site.id): len(site.heads) for site in lesson.anatomy.sites}
    plan = PruningPlan(remove=(), kept_per_site=kept)
    texts = documents_of(results, plan, None, source=source, settings=record_of(recipe))
    del texts["plan.json"]
    for name in _RECORDS:
        if (source.directory / name).is_file():
            texts[name] = (source.directory / name).read_text(encoding="utf-8")
    return texts
