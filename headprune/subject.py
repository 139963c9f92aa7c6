"""A loaded model with its task and its rows: which rows choose heads, and which report."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.batch import Batch
from headprune.checkpoint import load_model
from headprune.config import Recipe
from headprune.errors import ConfigError, DataError
from headprune.models import ModelSource, find, fingerprint, load_tokenizer
from headprune.tasks import Task, detect_task, get_task
from headprune.tasks.data import (
    Columns,
    Example,
    choose_columns,
    draw,
    hold_out,
    read_table,
    without_overlap,
)
from headprune.tasks.data import fingerprint as data_fingerprint


@runtime_checkable
class Voice(Protocol):
    """How a stage talks while it works."""

    def say(self, text: str) -> None:
        """Tell the user what is going on."""

    def track(self, items: Sequence[Batch], description: str) -> Iterable[Batch]:
        """Yield the items, showing progress."""


@dataclass(frozen=True)
class Subject:
    """A loaded model with what belongs to it."""

    recipe: Recipe
    source: ModelSource
    model: PreTrainedModel
    tokenizer: Any
    task: Task

    def accepts(self, name: str) -> bool:
        """Whether the model's forward takes an input of this name."""
        return name in inspect.signature(self.model.forward).parameters

    def batches(self, examples: Sequence[Example]) -> tuple[Batch, ...]:
        """Turn examples into batches."""
        return self.task.to_batches(
            examples, self.tokenizer, self.max_length, self.recipe.batch_size, self.accepts
        )

    @property
    def max_length(self) -> int:
        """The longest input: what was asked for, or what the model's positions allow."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        # RoBERTa counts its positions from padding_idx + 1 on.
        taken = (
            (self.model.config.pad_token_id or 0) + 1
            if "roberta" in self.model.config.model_type
            else 0
        )
        return (
            min(self.recipe.max_length, positions - taken) if positions else self.recipe.max_length
        )


@dataclass(frozen=True)
class Rows:
    """Examples, and what is noted of them in every artefact."""

    examples: tuple[Example, ...]
    note: dict[str, Any]


def open_subject(recipe: Recipe, *, voice: Voice) -> Subject:
    """Find and load the model and its tokenizer, and settle the task."""
    source = find(model_name(recipe), revision=recipe.revision)
    name = recipe.task or detect_task(source.config, model_directory=source.directory)
    task = get_task(name, model_directory=source.directory)
    model = load_model(source, auto_class=task.auto_class, device=recipe.device, dtype=recipe.dtype)
    device = next(model.parameters()).device
    voice.say(f"model {recipe.model} ({model.config.model_type}), task {name}, on {device}")
    return Subject(recipe, source, model, load_tokenizer(source), task)


def model_name(recipe: Recipe) -> str:
    """Return the model that a recipe names.

    Raises:
        ConfigError: It names none.
    """
    if recipe.model is None:
        raise ConfigError(
            "no model is named",
            where="MODEL",
            hint="name a directory or a hub id, such as demo:minilm",
        )
    return recipe.model


def calibration_rows(subject: Subject, *, voice: Voice) -> Rows:
    """Return the rows that choose the heads."""
    return separate_rows(subject, voice=voice)[0]


def evaluation_rows(subject: Subject, *, voice: Voice) -> Rows:
    """Return the rows of ``eval`` and ``check``: all of the evaluation data, or of the data where there is no other."""
    recipe = subject.recipe
    source, split = recipe.eval_data or recipe.data, recipe.eval_split or recipe.split
    examples, note = _read(subject, source, split, voice=voice)
    return _noted(draw(examples, recipe.limit, seed=recipe.seed), note)


def separate_rows(subject: Subject, *, voice: Voice) -> tuple[Rows, Rows]:
    """Return rows that choose and rows that report: no input is in both."""
    recipe = subject.recipe
    examples, note = _read(subject, recipe.data, recipe.split, voice=voice)
    count = min(recipe.num_samples, recipe.limit or recipe.num_samples)
    if recipe.eval_data or recipe.eval_split:
        reporting, other = _read(
            subject, recipe.eval_data or recipe.data, recipe.eval_split, voice=voice
        )
        free = without_overlap(examples, reporting)
        if len(free) < len(examples):
            voice.say(
                f"{len(examples) - len(free)} calibration rows are evaluation rows too; left out"
            )
        choosing = draw(free, count, seed=recipe.seed)
    else:
        choosing, reporting = hold_out(examples, count=count, seed=recipe.seed)
        other = {**note, "held_out": True}
        voice.say(
            f"no --eval-data: {len(choosing):,} rows choose the heads, the other {len(reporting):,} report"
        )
    if not choosing or len(reporting) < 2:
        raise DataError(
            f"{len(choosing)} rows are left to choose heads and {len(reporting)} to report on",
            where=f"--data {recipe.data}",
            hint="give more rows, or --eval-data with other rows than --data",
        )
    return _noted(choosing, note), _noted(draw(reporting, recipe.limit, seed=recipe.seed), other)


def _read(
    subject: Subject, source: str | None, split: str | None, *, voice: Voice
) -> tuple[tuple[Example, ...], dict[str, Any]]:
    if source is None:
        raise DataError(
            "no data is named",
            where="--data",
            hint="say --data FILE (csv, tsv, json, jsonl, parquet, txt) or --data HUB_ID",
        )
    recipe, task = subject.recipe, subject.task
    table = read_table(source, split=split, label=recipe.label)
    columns: Columns = choose_columns(
        table,
        texts=recipe.text,
        label=recipe.label,
        num_texts=task.num_texts,
        needs_label=task.needs_label,
    )
    label = f", label {columns.label!r}" if columns.label else ""
    shown = f"{source} {table.split}" if table.split else source
    voice.say(f"{shown}: text {', '.join(map(repr, columns.texts))}{label} ({columns.why})")
    examples = task.to_examples(
        table, columns, subject.tokenizer, subject.model.config, subject.max_length
    )
    return examples, {"name": source, "split": table.split, "task": task.name}


def _noted(examples: tuple[Example, ...], note: dict[str, Any]) -> Rows:
    return Rows(examples, {**note, "fingerprint": data_fingerprint(examples), "n": len(examples)})


def model_note(subject: Subject) -> dict[str, Any]:
    """Return what artefacts say of the model; a pruned one names what it was pruned from."""
    note = {
        "name": subject.source.name,
        "revision": subject.source.revision,
        "model_type": subject.model.config.model_type,
        "fingerprint": fingerprint(subject.model),
    }
    origin = pruning_record(subject.model.config).get("source")
    return {**note, "source": origin} if origin else note
