"""A loaded model with its task."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from transformers import PreTrainedModel

from headprune import demo
from headprune.anatomy.clone import pruning_record
from headprune.batch import Batch
from headprune.config import MAX_LENGTH, Recipe
from headprune.errors import ConfigError, ModelError, first_line
from headprune.models.facts import fingerprint
from headprune.models.find import ModelSource, find
from headprune.models.load import load_model
from headprune.models.tokenizer import load_tokenizer
from headprune.placement import describe
from headprune.runtime.local import published_name
from headprune.tasks.batches import Fill, InputFormat, ignore
from headprune.tasks.catalogue import require_metric, task_row
from headprune.tasks.distill import Objective, predictions_as_loss, with_teacher_targets
from headprune.tasks.metrics import Metric, load_metric
from headprune.tasks.model_inputs import filling, longest_row, refuse_reading_ahead
from headprune.tasks.rows import Example
from headprune.tasks.task import Task, detect_task, for_outputs, get_task, refuse_other_head

Item = TypeVar("Item")


@runtime_checkable
class Progress(Protocol):
    """How a stage talks while it works."""

    def notify(self, text: str) -> None:
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
        with tokenizing(self.source):
            return self.task.to_batches(examples, self.input_format(batch_size=size))

    def input_format(
        self, *, batch_size: int | None = None, notify: Callable[[str], None] = ignore
    ) -> InputFormat:
        """Return how texts become inputs of the model; remarks on labels go to ``notify``."""
        return InputFormat(
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            config=self.model.config,
            batch_size=batch_size,
            accepts=self.accepts,
            fill=self.fill,
            notify=notify,
        )

    @cached_property
    def fill(self) -> Fill:
        """What short rows are filled up with, which the model is asked when rows of different length come."""
        return filling(self.model, self.task.distillation.outputs, self.tokenizer)

    @property
    def metric(self) -> str:
        """The name of the metric: the one that was asked for, or the task's."""
        return self.recipe.metric or self.task.metric

    def statistic(self) -> Metric:
        """Return the metric, which must compare what the task predicts.

        Raises:
            ConfigError: It doesn't, or fails on a few rows.
        """
        return load_metric(
            self.metric,
            higher_is_better=self.recipe.higher_is_better,
            predicted=self.task.row.predicts,
            classes=self.task.num_classes(self.model.config),
        )

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Return what importance is about: the task's loss, or how far outputs are from those of the model as it is."""
        batches = self.batches(examples)
        if self.recipe.objective == "distill":
            return with_teacher_targets(
                self.model, self.task.distillation, batches, seed=self.recipe.seed
            )
        return Objective(batches, batches, self.task.loss)

    def metric_objective(self, examples: Sequence[Example]) -> Objective:
        """Return the metric itself as what importance is about."""
        batches = self.batches(examples)
        predictions = self.task.predicted_loss or predictions_as_loss(self.task.predict)
        return Objective(batches, batches, predictions, self.statistic())

    @cached_property
    def max_length(self) -> int:
        """The longest row: what was asked for, or what the task settles, no longer than the model takes."""
        asked = self.recipe.max_length or self.task.max_length or MAX_LENGTH
        taken = longest_row(self.model, special=self.tokenizer.all_special_ids)
        return min(limit for limit in (asked, self.task.max_length, taken) if limit)


def open_subject(recipe: Recipe, *, progress: Progress) -> Subject:
    """Find and load the model and its tokenizer, and settle the task."""
    source = find_model(recipe)
    name = recipe.task or detect_task(source.config, model_directory=source.root)
    refuse_other_head(name, source.config, model_directory=source.root)
    name = for_outputs(name, source.config)
    row = task_row(name)
    require_metric(
        recipe.metric or row.metric,
        higher_is_better=recipe.higher_is_better,
        predicted=row.predicts,
    )
    tokenizer = load_tokenizer(source)
    task = get_task(name, model_directory=source.root, config=source.config, tokenizer=tokenizer)
    model = load_model(
        source,
        auto_class=task.auto_class,
        device=recipe.device,
        dtype=recipe.dtype,
        notify=progress.notify,
    )
    progress.notify(
        f"model {recipe.model} ({model.config.model_type}), task {name}, on {describe(model)}"
    )
    subject = Subject(recipe, source, model, tokenizer, task)
    subject.statistic()  # a metric that can't be computed is refused before the work
    if subject.max_length < (recipe.max_length or 0):
        sparse = getattr(model.config, "attention_type", None) == "block_sparse"
        why = (
            "it reads longer ones block by block, until a short one changes that for good; "
            'with "attention_type": "original_full" in config.json it takes longer ones'
            if sparse
            else "the model takes no longer ones"
        )
        progress.notify(f"texts are cut at {subject.max_length} tokens: {why}")
    if task.row.reads_forward:
        refuse_reading_ahead(model, special=tokenizer.all_special_ids)
    if task.described:
        progress.notify(
            f"embeddings: {task.described}; texts are cut at {subject.max_length} tokens"
        )
    return subject


@contextmanager
def tokenizing(source: ModelSource) -> Iterator[None]:
    """Name a tokenizer that fails on a text: the tokenizers library raises bare exceptions, and panics, which aren't even that.

    Raises:
        ModelError: It does.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer of {source.name} fails on a text: {first_line(error)}",
            where=str(source.directory / "tokenizer.json"),
            hint="repair it, or fetch the model again",
        ) from error


def find_model(recipe: Recipe, *, weights: bool = True) -> ModelSource:
    """Find the model that a recipe names; without ``weights``, its config is enough.

    Raises:
        ConfigError: It names none, or a revision of a directory.
        ModelError: The model can't be had.
    """
    name = model_name(recipe)
    if recipe.revision is not None and (name.startswith(demo.PREFIX) or Path(name).exists()):
        raise ConfigError(
            f"{name} lies here, and only models of the hub have revisions",
            where=f"--revision {recipe.revision}",
            hint="leave it out, or name the model by its hub id",
        )
    return find(
        name,
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
