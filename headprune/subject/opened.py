"""A loaded model with its task."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.batch import Batch
from headprune.checkpoint import load_model
from headprune.config import Recipe
from headprune.errors import ConfigError, ModelError
from headprune.local import published_name
from headprune.models import ModelSource, find, fingerprint, load_tokenizer
from headprune.placement import describe
from headprune.tasks import Task, detect_task, get_task, of_outputs, refuse_other_head
from headprune.tasks.distill import Goal, taught
from headprune.tasks.metrics import Statistic, load_metric
from headprune.tasks.rows import (
    Example,
)


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
    def metric(self) -> str:
        """The name of the metric: the one that was asked for, or the task's."""
        return self.recipe.metric or self.task.metric

    def statistic(self) -> Statistic:
        """Return the metric, which must compare what the task predicts.

        Raises:
            ConfigError: It doesn't, or fails on a few rows.
        """
        return load_metric(
            self.metric,
            higher_is_better=self.recipe.higher_is_better,
            predicted=self.task.predicted,
            classes=self.task.num_classes(self.model.config),
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


def open_subject(recipe: Recipe, *, voice: Voice) -> Subject:
    """Find and load the model and its tokenizer, and settle the task."""
    source = find(model_name(recipe), revision=recipe.revision)
    name = recipe.task or detect_task(source.config, model_directory=source.directory)
    refuse_other_head(name, source.config, model_directory=source.directory)
    name = of_outputs(name, source.config)
    task = get_task(name, model_directory=source.directory)
    model = load_model(source, auto_class=task.auto_class, device=recipe.device, dtype=recipe.dtype)
    tokenizer = load_tokenizer(source)
    if (
        task.name in ("classification", "regression")
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
    subject = Subject(recipe, source, model, tokenizer, task)
    subject.statistic()  # a metric that can't be computed is refused before the work
    return subject


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
        "name": published_name(subject.source.name),
        "revision": subject.source.revision,
        "model_type": subject.model.config.model_type,
        "fingerprint": fingerprint(subject.model),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }
    origin = pruning_record(subject.model.config).get("source")
    return {**note, "source": origin} if origin else note
