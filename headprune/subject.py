"""A loaded model with its task and its rows: which rows choose heads, and which report."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.batch import Batch
from headprune.checkpoint import load_model
from headprune.config import Recipe
from headprune.errors import ConfigError, DataError, ModelError
from headprune.heads import HeadScores, read_artefact
from headprune.local import count_noted_elsewhere, published_name
from headprune.models import ModelSource, find, fingerprint, load_tokenizer
from headprune.placement import describe
from headprune.results import Results
from headprune.tasks import Task, detect_task, get_task
from headprune.tasks.chats import is_chat
from headprune.tasks.data import Columns, Table, choose_columns, read_table
from headprune.tasks.distill import Goal, taught
from headprune.tasks.leaks import prose_without_rows_of, without_rows_of
from headprune.tasks.rows import Example, draw, hold_out, without_inputs, without_noted
from headprune.tasks.rows import fingerprint as fingerprint_of_rows


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

    def goal(self, examples: Sequence[Example]) -> Goal:
        """Return what importance is about: the task's loss, or how far outputs are from those of the model as it is."""
        batches = self.batches(examples)
        if self.recipe.objective == "distill":
            return taught(self.model, self.task.distill, batches, seed=self.recipe.seed)
        return Goal(batches, batches, self.task.loss)

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
    tokenizer = load_tokenizer(source)
    if (
        task.name == "classification"
        and model.config.pad_token_id is None
        and tokenizer.pad_token_id is None
        and recipe.batch_size != 1
    ):
        raise ModelError(
            "the model has no padding token, so it can't tell where a padded text ends",
            where="config.json (pad_token_id)",
            hint="use --batch-size 1, or give the config and the tokenizer a padding token",
        )
    voice.say(
        f"model {recipe.model} ({model.config.model_type}), task {name}, on {describe(model)}"
    )
    return Subject(recipe, source, model, tokenizer, task)


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
    table, columns = _read(subject, *_evaluation_source(subject.recipe), voice=voice)
    examples = draw(
        _examples(subject, table, columns), subject.recipe.limit, seed=subject.recipe.seed
    )
    chose = rows_that_chose(subject)
    seen = len(examples) - len(without_noted(examples, chose))
    _say_what_cannot_be_told(chose, voice=voice)
    if seen:
        voice.say(f"careful: {seen} of these {len(examples)} rows chose the heads of this model")
    return _noted(subject, examples, table)


def rows_that_chose(subject: Subject) -> tuple[str, ...]:
    """Return the hashes of the inputs that chose the heads of a model pruned before, or that it was trained on since."""
    directory = subject.source.directory
    if not pruning_record(subject.model.config):
        return ()
    found: set[str] = set()
    if (path := directory / "scores.json").is_file():
        found |= set(read_artefact(HeadScores, path).rows)
    if (path := directory / "results.json").is_file():
        healed = read_artefact(Results, path).heal
        found |= set(healed.rows if healed else ())
    return tuple(sorted(found))


def separate_rows(
    subject: Subject,
    *,
    voice: Voice,
    chose: Collection[str] = (),
    use: str = "choose the heads",
    labelled: bool = True,
    times: int = 1,
) -> tuple[Rows, Rows]:
    """Return rows that choose and rows that report: no input is in both.

    Args:
        subject: The model, with its recipe.
        voice: How to talk meanwhile.
        chose: Hashes of inputs that chose heads before; they don't report.
        use: What the rows that don't report are for.
        times: How many times as many of those as the recipe says.
        labelled: Whether labels are read with those; where they come from the same data as those that report, they are.

    Raises:
        DataError: Too few rows are left on a side.
    """
    recipe = subject.recipe
    own_rows = bool(recipe.eval_data or recipe.eval_split)
    # Rows that also report, or decide by the metric, need their labels all the same.
    labelled = (labelled and recipe.objective != "distill") or not own_rows or times > 1
    table, columns = _read(subject, recipe.data, recipe.split, voice=voice, labelled=labelled)
    count = times * min(recipe.num_samples, recipe.limit or recipe.num_samples)
    if own_rows:
        other, other_columns = _read(subject, *_evaluation_source(recipe), voice=voice)
        reporting = _examples(subject, other, other_columns)
        free, count_left_out = table, 0
        if columns.texts == other_columns.texts and subject.task.reads_prose:
            free, count_left_out = prose_without_rows_of(table, other, column=columns.texts[0])
        elif columns.texts == other_columns.texts:
            free, count_left_out = without_rows_of(table, other, columns=columns.texts)
        if count_left_out:
            voice.say(f"{count_left_out} calibration rows are evaluation rows too; left out")
        choosing = draw(_examples(subject, free, columns), count, seed=recipe.seed)
        reporting = without_inputs(reporting, [example.input_digest for example in choosing])
    else:
        other = table
        choosing, reporting = hold_out(
            _examples(subject, table, columns), count=count, seed=recipe.seed
        )
        voice.say(
            f"no --eval-data: {len(choosing):,} rows {use}, the other {len(reporting):,} report"
        )
    _say_what_cannot_be_told(chose, voice=voice)
    left = without_noted(reporting, chose)
    if len(left) < len(reporting):
        voice.say(f"{len(reporting) - len(left)} evaluation rows chose heads before; left out")
    if not choosing or len(left) < 2:
        raise DataError(
            f"{len(choosing)} rows are left to {use} and {len(left)} to report on",
            where=f"--data {recipe.data}",
            hint="give more rows, or --eval-data with other rows than --data",
        )
    report = draw(left, recipe.limit, seed=recipe.seed)
    return _noted(subject, choosing, table), _noted(subject, report, other)


def _say_what_cannot_be_told(chose: Collection[str], *, voice: Voice) -> None:
    """Say that some rows that chose heads may report, where nobody here can recognise them."""
    unknown = count_noted_elsewhere(chose)
    if unknown:
        voice.say(
            f"careful: {unknown:,} rows that chose heads before were noted on another machine, or by another version: "
            "whether they report can't be told here"
        )


def _evaluation_source(recipe: Recipe) -> tuple[str | None, str | None]:
    """Return where the rows that report come from: data and split."""
    if recipe.eval_data:
        return recipe.eval_data, recipe.eval_split
    return recipe.data, recipe.eval_split or recipe.split


def _read(
    subject: Subject, source: str | None, split: str | None, *, voice: Voice, labelled: bool = True
) -> tuple[Table, Columns]:
    if source is None:
        raise DataError(
            "no data is named",
            where="--data",
            hint="say --data FILE (csv, tsv, json, jsonl, parquet, arrow, txt) or --data HUB_ID",
        )
    recipe, task = subject.recipe, subject.task
    table = read_table(source, split=split)
    columns = choose_columns(
        table,
        texts=recipe.text,
        label=recipe.label if labelled else None,
        num_texts=task.num_texts,
        needs_label=task.needs_label and labelled,
    )
    label = f", label {columns.label!r}" if columns.label else ""
    shown = f"{source} {table.split}" if table.split else source
    read = (*columns.texts, columns.label)
    others = [name for name in table.columns if name not in read]
    unread = f"; not read: {', '.join(map(repr, others[:8]))}{' ...' if len(others) > 8 else ''}"
    chats = is_chat(table.rows[0][columns.texts[0]])
    why = f"{columns.why}{'; chats, through the chat template' if chats else ''}"
    voice.say(
        f"{shown}: {len(table.rows):,} rows, text {', '.join(map(repr, columns.texts))}{label} "
        f"({why}{unread if others else ''})"
    )
    return table, columns


def _examples(subject: Subject, table: Table, columns: Columns) -> tuple[Example, ...]:
    return subject.task.to_examples(
        table, columns, subject.tokenizer, subject.model.config, subject.max_length
    )


def _noted(subject: Subject, examples: tuple[Example, ...], table: Table) -> Rows:
    note = {
        "name": published_name(table.name),
        "split": table.split,
        "task": subject.task.name,
        "max_length": subject.max_length,
        "fingerprint": fingerprint_of_rows(examples),
        "n": len(examples),
    }
    return Rows(examples, note)


def model_note(subject: Subject) -> dict[str, Any]:
    """Return what artefacts say of the model; a pruned one names what it was pruned from."""
    note = {
        "name": published_name(subject.source.name),
        "revision": subject.source.revision,
        "model_type": subject.model.config.model_type,
        "fingerprint": fingerprint(subject.model),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }
    origin = pruning_record(subject.model.config).get("source")
    return {**note, "source": origin} if origin else note
