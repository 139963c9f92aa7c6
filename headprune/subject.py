"""A loaded model with its task and its rows: which rows choose heads, and which report."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.artefact import read_artefact
from headprune.batch import Batch
from headprune.checkpoint import load_model
from headprune.config import MAX_LENGTH, Recipe
from headprune.errors import ConfigError, DataError
from headprune.heads import HeadScores
from headprune.local import count_noted_elsewhere, published_name
from headprune.models import ModelSource, find, fingerprint, load_tokenizer
from headprune.placement import describe
from headprune.results import Results
from headprune.tasks import Task, detect_task, get_task
from headprune.tasks.asked import Fill, filling, longest_row, refuse_reading_ahead
from headprune.tasks.data import Columns, Table, choose_columns, read_table, without_rows_of
from headprune.tasks.distill import Goal, taught
from headprune.tasks.rows import Example, draw, hold_out, without_inputs, without_noted
from headprune.tasks.rows import fingerprint as fingerprint_of_rows

Item = TypeVar("Item")


@runtime_checkable
class Voice(Protocol):
    """How a stage talks while it works."""

    def say(self, text: str) -> None:
        """Tell the user what is going on."""

    def track(self, items: Sequence[Item], description: str) -> Iterable[Item]:
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

    def batches(
        self, examples: Sequence[Example], *, batch_size: int | None = None
    ) -> tuple[Batch, ...]:
        """Turn examples into batches of the recipe's size, or of another."""
        size = batch_size or self.recipe.batch_size
        return self.task.to_batches(
            examples, self.tokenizer, self.max_length, size, self.accepts, self.fill
        )

    @cached_property
    def fill(self) -> Fill:
        """What short rows are filled up with, which the model is asked when rows of different length come."""
        return filling(self.model, self.task.distill.said, self.tokenizer)

    def goal(self, examples: Sequence[Example]) -> Goal:
        """Return what importance is about: the task's loss, or how far outputs are from those of the model as it is."""
        batches = self.batches(examples)
        if self.recipe.objective == "distill":
            return taught(self.model, self.task.distill, batches, seed=self.recipe.seed)
        return Goal(batches, batches, self.task.loss)

    @cached_property
    def max_length(self) -> int:
        """The longest row: what was asked for, or what the task settles, no longer than the model takes."""
        asked = self.recipe.max_length or self.task.max_length or MAX_LENGTH
        taken = longest_row(self.model, special=self.tokenizer.all_special_ids)
        return min(limit for limit in (asked, self.task.max_length, taken) if limit)


@dataclass(frozen=True)
class Rows:
    """Examples, and what is noted of them in every artefact."""

    examples: tuple[Example, ...]
    note: dict[str, Any]


def open_subject(recipe: Recipe, *, voice: Voice) -> Subject:
    """Find and load the model and its tokenizer, and settle the task."""
    source = find_model(recipe)
    name = recipe.task or detect_task(source.config, model_directory=source.root)
    tokenizer = load_tokenizer(source)
    task = get_task(name, model_directory=source.root, config=source.config, tokenizer=tokenizer)
    model = load_model(
        source,
        auto_class=task.auto_class,
        device=recipe.device,
        dtype=recipe.dtype,
        say=voice.say,
    )
    voice.say(
        f"model {recipe.model} ({model.config.model_type}), task {name}, on {describe(model)}"
    )
    subject = Subject(recipe, source, model, tokenizer, task)
    if subject.max_length < (recipe.max_length or 0):
        voice.say(f"texts are cut at {subject.max_length} tokens: the model takes no longer ones")
    if task.reads_forward:
        refuse_reading_ahead(model, special=tokenizer.all_special_ids)
    if task.described:
        voice.say(f"embeddings: {task.described}; texts are cut at {subject.max_length} tokens")
    return subject


def find_model(recipe: Recipe, *, weights: bool = True) -> ModelSource:
    """Find the model that a recipe names; without ``weights``, its config is enough."""
    return find(
        model_name(recipe),
        revision=recipe.revision,
        weights=weights,
        stock_class=recipe.stock_class,
    )


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
    table, columns = _read(subject, *evaluation_source(subject.recipe), voice=voice)
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
        other, other_columns = _read(subject, *evaluation_source(recipe), voice=voice)
        reporting = _examples(subject, other, other_columns)
        free = table
        if columns.texts == other_columns.texts:
            free = without_rows_of(table, other, columns=columns.texts)
        if len(free.rows) < len(table.rows):
            voice.say(
                f"{len(table.rows) - len(free.rows)} calibration rows are evaluation rows too; left out"
            )
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


def evaluation_source(recipe: Recipe) -> tuple[str | None, str | None]:
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
            hint="say --data FILE (csv, tsv, json, jsonl, parquet, txt) or --data HUB_ID",
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
    voice.say(f"{shown}: text {', '.join(map(repr, columns.texts))}{label} ({columns.why})")
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
        **origin_of(subject.source),
        "model_type": subject.model.config.model_type,
        "fingerprint": fingerprint(subject.model),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }
    origin = pruning_record(subject.model.config).get("source")
    return {**note, "source": origin} if origin else note


def origin_of(source: ModelSource) -> dict[str, str | None]:
    """Return what is recorded of where a model came from, the code of its own that wasn't run among it."""
    code = {"own_code": source.own_code} if source.own_code else {}
    return {"name": published_name(source.name), "revision": source.revision, **code}
