"""The teacher of a pruned model: its recorded source, or the model that the user names; refused if its head or tokens differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.anatomy.sites import Anatomy
from headprune.distillation.teacher import attention_parameters, copy_as_teacher
from headprune.errors import ConfigError, ModelError
from headprune.models.find import ModelSource, find
from headprune.models.load import load_model
from headprune.models.manifest import refuse_source
from headprune.models.tokenizer import load_tokenizer
from headprune.placement import fingerprint, fingerprint_of, values_of
from headprune.runtime.local import place_of, published_name
from headprune.tasks.batches import fill_with_zero
from headprune.tasks.rows import Example
from headprune.tasks.task import Task, get_task
from headprune.workflows.session import Session

_ANOTHER = "name the model that it was pruned from: `teacher=MODEL`"


@dataclass(frozen=True)
class Teacher:
    """The model to learn from, with its task (and its own pooling) and the facts about it that are recorded."""

    model: PreTrainedModel
    task: Task
    tokenizer: Any
    note: dict[str, Any]


def open_teacher(session: Session) -> Teacher:
    """Find and load the teacher, and check that it is the source of the student, or at least has the same tokens and head.

    Raises:
        CheckpointError: The output directory is, or holds, the teacher.
        ConfigError: The student has no recorded source, and no teacher is named.
        ModelError: The teacher can't be found, isn't what the student was pruned from, or has another vocabulary or head.
    """
    settings = session.settings
    source, recorded = _find_teacher(session)
    refuse_source(Path(settings.run.out or ""), source.directory)
    tokenizer = load_tokenizer(source)
    task = get_task(
        session.task.name, model_directory=source.root, config=source.config, tokenizer=tokenizer
    )
    try:
        model = load_model(
            source,
            auto_class=task.auto_class,
            device=str(session.model.device),
            dtype=settings.model.dtype,
            notify=session.progress.notify,
        )
    except ModelError as error:
        raise ModelError(
            f"the teacher {source.name} has no head for {task.name}: {error.what}",
            where="`teacher`",
            hint=_ANOTHER,
        ) from error
    note = {
        "name": published_name(source.name),
        "revision": source.revision,
        "fingerprint": fingerprint(model),
    }
    # In the dtype in which it was pruned, too.
    as_pruned = ((name, value, session.model.dtype) for name, value in values_of(model))
    if recorded and recorded not in (note["fingerprint"], fingerprint_of(as_pruned)):
        raise ModelError(
            f"{source.name} is no longer the model that {session.source.name} was pruned from (its weights differ)",
            where=f"{session.source.directory}/config.json (headprune.source)",
            hint=f"bring it back, or give `teacher={source.name}` if it is meant",
        )
    _refuse_other_head(session, model, name=source.name)
    session.progress.notify(f"teacher {source.name}")
    return Teacher(model, task, tokenizer, note)


def copy_of(session: Session, anatomy: Anatomy) -> Teacher:
    """Return the session's own model as a teacher, whatever becomes of that model: what doesn't change lies in memory once."""
    model, spec = session.model, session.settings.distill
    is_shared = spec.lora is not None or spec.heal_weights == "attention"
    changed = attention_parameters(model, anatomy) if is_shared else None
    names = ("name", "revision", "fingerprint")
    note = {name: session.note[name] for name in names}
    return Teacher(copy_as_teacher(model, changed=changed), session.task, session.tokenizer, note)


def _find_teacher(session: Session) -> tuple[ModelSource, str | None]:
    """Return the teacher, and the fingerprint that it must have; None if the user named it."""
    if session.settings.distill.teacher is not None:
        named = session.settings.distill.teacher
        return find(named, stock_class=session.settings.model.stock_class), None
    record = pruning_record(session.model.config)
    origin = record.get("source") or {}
    if not origin.get("name"):
        what = "doesn't say what it was pruned from" if record else "is no pruned model"
        raise ConfigError(
            f"{session.source.name} {what}",
            where=f"{session.source.directory}/config.json (headprune.source)",
            hint=_ANOTHER,
        )
    name, fingerprint = str(origin["name"]), origin.get("fingerprint")
    noted = place_of(fingerprint, name=name)
    if noted is None and (Path(name).is_absolute() or fingerprint is None):
        raise ModelError(
            f"{session.source.name} was pruned from {Path(name).name}, and where that lies isn't known here",
            where=f"{session.source.directory}/config.json (headprune.source)",
            hint=_ANOTHER,
        )
    try:
        # What the student was pruned from as transformers' own class teaches as that.
        stock_class = session.settings.model.stock_class or origin.get("own_code") is not None
        revision = origin.get("revision")
        return find(noted or name, revision=revision, stock_class=stock_class), fingerprint
    except ModelError as error:
        raise ModelError(
            f"{name}, which {session.source.name} was pruned from, can't be had: {error.what}",
            where=f"{session.source.directory}/config.json (headprune.source)",
            hint=_ANOTHER,
        ) from error


def _refuse_other_head(session: Session, teacher: PreTrainedModel, *, name: str) -> None:
    """Refuse a teacher whose outputs have another width, or another order of classes."""
    student = session.model
    for fact, meaning in session.task.row.teacher_shares.items():
        own, other = getattr(student.config, fact, None), getattr(teacher.config, fact, None)
        if own != other:
            raise ModelError(
                f"the teacher {name} has other {meaning}: {other}, and {session.source.name} has {own}",
                where=f"config.json ({fact})",
                hint=_ANOTHER,
            )


def refuse_other_words(session: Session, teacher: Teacher, examples: Sequence[Example]) -> None:
    """Refuse a teacher that reads texts as other tokens than the student.

    Raises:
        ModelError: The tokens of a text differ.
    """
    same = session.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    if same and examples:
        own = replace(session.input_format(batch_size=len(examples)), fill=fill_with_zero)
        both = [
            session.task.to_batches(examples, replace(own, tokenizer=tokenizer))[0].inputs
            for tokenizer in (session.tokenizer, teacher.tokenizer)
        ]
        same = all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    if not same:
        raise ModelError(
            f"the teacher {teacher.note['name']} has another vocabulary than {session.source.name}",
            where="tokenizer.json",
            hint=_ANOTHER,
        )
