"""Healing, as ``heal`` and ``prune --heal`` share it: train towards a teacher, and keep what helps on other rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from headprune.anatomy.sites import Anatomy
from headprune.artefact import Heal, Proof
from headprune.batch import Batch
from headprune.config import DistillSpec, Settings
from headprune.distillation.memory import memory_for, refuse_too_large
from headprune.distillation.settings import (
    Checkpoints,
    last_checkpoint,
    linear_layers,
    parse_pairs,
    refuse_adapters,
    saves_by_time,
    trainer_settings,
)
from headprune.distillation.teacher import (
    DistillJob,
    attention_parameters,
    copied_weights,
    distance_between,
    keep_nearest,
    mean_distance,
    restore_weights,
)
from headprune.errors import ConfigError, MemoryLimitError, ModelError
from headprune.placement import choose_device, fingerprint, release_memory, versions
from headprune.runtime.launcher import launched_size
from headprune.tasks.rows import Example, noted_rows
from headprune.workflows.reading import Rows
from headprune.workflows.session import Session
from headprune.workflows.teacher import Teacher

if TYPE_CHECKING:
    from headprune.distillation.trainer import Trained

FEWEST_ROWS = 8
_OF_ADAM = ("learning_rate", "adam_beta1", "adam_beta2")
_NAMES = (*_OF_ADAM, "per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is known before a training.

    Args:
        session: The student, with its settings.
        teacher: Whom it learns from.
        anatomy: The student's.
        rows: The rows that are trained on.
        held_out: Other rows, which decide whether it helped.
        used: All rows that mustn't report from now on.
        sample: A few rows that report, to prove on.
    """

    session: Session
    teacher: Teacher
    anatomy: Anatomy
    rows: Rows
    held_out: tuple[Example, ...]
    used: tuple[Example, ...]
    sample: Batch

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

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that identify a training: models, rows and settings."""
        settings = self.session.settings
        names = {"heal", "heal_weights", "epochs", "max_steps", "learning_rate", "lora", "trainer"}
        return {
            "model": fingerprint(self.session.model),
            "teacher": self.teacher.note["fingerprint"],
            "rows": self.rows.note,
            "settings": {
                **settings.distill.model_dump(mode="json", include=names),
                **settings.data.model_dump(mode="json", include={"batch_size", "seed"}),
            },
            "device": self.session.model.device.type,
            "versions": versions(),
        }


def check_training(settings: Settings) -> None:
    """Refuse what can be known to be wrong before a model is loaded.

    Raises:
        ConfigError: Trainer can't train on such a device, or an argument is none of its.
    """
    device = settings.model.device
    if device not in ("auto", "cpu", "cuda", "mps", *(["cuda:0"] if launched_size() == 1 else [])):
        raise ConfigError(
            f"heal can't train on {device!r}: Trainer takes the first device of a kind",
            where="`device`",
            hint="use auto, cpu, cuda or mps; CUDA_VISIBLE_DEVICES=1 makes another GPU the first",
        )
    parse_pairs(settings.distill.trainer)


def arguments_of(
    settings: Settings, folder: Path, *, rates: Mapping[str, float], own: Mapping[str, Any]
) -> TrainingArguments:
    """Return Trainer's arguments; ``rates`` are those that are used where the user sets none."""
    spec = settings.distill
    rate = rates[spec.heal_weights if spec.lora is None else "lora"]
    rate = rate if spec.learning_rate is None else spec.learning_rate
    given = {"learning_rate": rate, "seed": settings.data.seed, **own}
    kind = choose_device(settings.model.device).type
    return trainer_settings(pairs=spec.trainer, own=given, folder=folder, device=kind)


def trained_parameters(
    model: PreTrainedModel, anatomy: Anatomy, spec: DistillSpec
) -> frozenset[str] | None:
    """Return the names of the parameters that are trained, or get adapters; None stands for all."""
    return attention_parameters(model, anatomy) if spec.heal_weights == "attention" else None


def refuse_training(session: Session, anatomy: Anatomy, *, has_teacher: bool) -> None:
    """Refuse adapters that don't fit the model, and a training that doesn't fit in memory; report what it takes.

    Args:
        session: The student.
        anatomy: Its anatomy.
        has_teacher: Whether the teacher is in memory already; it is a copy of the student as it is now, else.

    Raises:
        ConfigError: PEFT isn't installed.
        MemoryLimitError: Too little memory is free.
        UnsupportedError: An adapter would do nothing, or something else than it says.
    """
    model, spec = session.model, session.settings.distill
    trained = trained_parameters(model, anatomy, spec)
    smaller = ["`heal_weights=attention`"] if trained is None else []
    copied: frozenset[str] | None = trained
    if spec.lora is None:
        smaller.append("`lora=8`")
    else:
        refuse_adapters(anatomy)
        merged = (f"{name}.weight" for name in linear_layers(model, within=trained))
        copied = attention_parameters(model, anatomy) | {*merged}
    memory = memory_for(
        model, lora=spec.lora, trained=trained, copied=frozenset() if has_teacher else copied
    )
    session.progress.notify(memory.described)
    hint = f"train less: {' or '.join(smaller)}; or use a `device` with more memory"
    refuse_too_large(memory, model, smaller=hint if smaller else "use a `device` with more memory")


def distil(
    lesson: Lesson, arguments: TrainingArguments, checkpoints: Checkpoints
) -> tuple[Heal, tuple[Proof, ...]]:
    """Train the student in place, and keep as much of that as brings it nearest to its teacher on the held-out rows.

    Weights between the old and the trained ones, ``W + share (W_trained - W)``, may be better than both (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022). The share is one of :data:`SHARES`; 0 leaves the weights as they were.

    Returns:
        What was done, and what was proven of it.

    Raises:
        MemoryLimitError: Memory ran out on a single row, or in one of several processes.
    """
    session, teacher = lesson.session, lesson.teacher
    model, spec, notify = session.model, session.settings.distill, session.progress.notify
    distance = distance_between(session.task.distillation, teacher.task.distillation)
    unseen = session.batches(lesson.held_out)
    away = partial(mean_distance, model, teacher.model, batches=unseen, distance=distance)
    job = DistillJob(
        teacher=teacher.model,
        examples=lesson.rows.examples,
        held_out=lesson.held_out,
        collate=lesson.collate,
        distance=distance,
        arguments=arguments,
        progress=session.progress,
        lora=spec.lora,
        trained=trained_parameters(model, lesson.anatomy, spec),
        checkpoint=checkpoints.last,
        saves_by_time=saves_by_time(spec.trainer),
        world=session.world,
        sample=lesson.sample.inputs,
    )
    old, start = copied_weights(model, _changed_by(model, job)), away()
    notify(f"healing on {len(lesson.rows.examples):,} rows")
    trained = _train(lesson, job, old)
    share, end = keep_nearest(model, old, away, start=start)
    if not share:
        notify(
            f"careful: it didn't heal: the loss on {len(lesson.held_out):,} rows that it wasn't trained on "
            f"was {start:.4g} and would be {end:.4g}; the weights stay as they were"
        )
    healed = Heal(
        teacher=teacher.note,
        objective=session.task.row.distance,
        trained_on=len(lesson.rows.examples),
        held_out=len(lesson.held_out),
        loss=(start, end),
        steps=trained.steps,
        share=share,
        weights=spec.heal_weights,
        lora=spec.lora,
        data=lesson.rows.note,
        settings=_noted_settings(spec, arguments),
        rows=noted_rows(lesson.used, earlier=session.used_rows),
    )
    return healed, trained.proofs if healed.kept else ()


def _train(lesson: Lesson, job: DistillJob, old: Mapping[str, Tensor]) -> "Trained":
    """Train; where memory runs out, make the same steps of smaller batches, from the last checkpoint or the start."""
    from headprune.distillation.trainer import train  # it imports Trainer, which takes long

    session, arguments = lesson.session, job.arguments
    while True:
        try:
            return train(session.model, lesson.anatomy, job)
        except MemoryLimitError:
            rows = arguments.per_device_train_batch_size
            if rows == 1 or session.world.size > 1:
                raise
        parts = rows if rows % 2 else 2
        arguments.per_device_train_batch_size = rows // parts
        arguments.gradient_accumulation_steps *= parts
        session.progress.notify(
            f"memory ran out: going on with {rows // parts} rows at a time, for the same steps"
        )
        restore_weights(session.model, old)
        release_memory()
        job = replace(job, checkpoint=last_checkpoint(Path(str(arguments.output_dir))))


def _changed_by(model: PreTrainedModel, job: DistillJob) -> Collection[str] | None:
    """Return the names of the parameters that a training changes; None stands for all."""
    if job.lora is None:
        return job.trained
    return [f"{name}.weight" for name in linear_layers(model, within=job.trained)]


def _noted_settings(spec: DistillSpec, arguments: TrainingArguments) -> dict[str, Any]:
    """Return the settings that matter most, and the other settings that the user gave."""
    given = [pair.partition("=")[0].strip().replace("-", "_") for pair in spec.trainer]
    length = "max_steps" if arguments.max_steps > 0 else "num_train_epochs"
    values = arguments.to_dict()
    noted = {name: values[name] for name in (length, *_NAMES, *given) if name in values}
    return noted if arguments.world_size == 1 else {**noted, "processes": arguments.world_size}


@contextmanager
def saying_where(folder: Path, *, remedy: str) -> Iterator[None]:
    """Where the user stops a training, say where its checkpoints are, and what goes on from them."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if last_checkpoint(folder) is not None:
            stopped.add_note(f"checkpoints are in {folder}; {remedy}")
        raise
