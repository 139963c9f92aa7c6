"""A task as a value: how rows become examples, examples become batches, and outputs become losses; and which task a model has."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from headprune.batch import Batch, Loss, PositionLoss
from headprune.errors import ConfigError
from headprune.late import load_function
from headprune.tasks.batches import InputFormat
from headprune.tasks.catalogue import TASKS, TaskRow, task_row
from headprune.tasks.columns import Columns
from headprune.tasks.distill import Distillation
from headprune.tasks.embedder import embeds_sentences
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.untrusted.directories import module_entries

_IN_PYTHON = "score it in Python by a loss of your own: headprune.score(model, batches, loss=...)"
_HEAD = re.compile(
    "For(MaskedLM|TokenClassification|QuestionAnswering|MultipleChoice|NextSentencePrediction|SequenceClassification)$"
)
"""Heads that a model would lose silently if it were loaded for another task."""


@dataclass(frozen=True)
class Task:
    """A task of one model.

    Args:
        row: What the catalogue says of it.
        to_examples: ``(table, columns, format) -> examples``; what is odd about the labels goes to ``format.notify``.
        to_batches: ``(examples, format) -> batches``.
        loss: ``(outputs, batch) -> [examples]``, smaller is better; one example's loss never depends on another's.
        predict: ``(outputs, batch) -> (predictions, references)``, what the metric compares, [examples] each.
        distillation: How it does without labels.
        predicted_loss: Set where the predictions are a loss of this kind, the references the batch's targets, and ``loss`` the
            one divided by the other: then the logits of a few positions at a time are enough to evaluate.
        max_length: The longest input in tokens that the model itself settles; None where it settles none.
        described: What the model does beside its transformer, in words for the user.
    """

    row: TaskRow
    to_examples: Callable[[Table, Columns, InputFormat], tuple[Example, ...]]
    to_batches: Callable[[Sequence[Example], InputFormat], tuple[Batch, ...]]
    loss: Loss
    predict: Callable[[Any, Batch], tuple[Tensor, Tensor]]
    distillation: Distillation
    predicted_loss: PositionLoss | None = None
    max_length: int | None = None
    described: str = ""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.row.name

    @property
    def metric(self) -> str:
        """The default metric."""
        return self.row.metric

    @property
    def auto_class(self) -> str:
        """The ``AutoModel...`` class that loads its models."""
        return self.row.auto_class

    def num_classes(self, config: Any) -> int | None:
        """Return how many classes a model tells apart, None where it predicts none."""
        return int(config.num_labels) if self.row.predicts == "classes" else None


def get_task(
    name: str, *, model_directory: Path | None = None, config: Any = None, tokenizer: Any = None
) -> Task:
    """Return a task by name; what a sentence-embedding model does beside its transformer is read from its directory.

    Raises:
        ConfigError: There is no such task.
        ModelError: The model embeds in a way that isn't known, or names code that isn't run.
    """
    row = task_row(name)
    if model_directory is not None:
        module_entries(model_directory)
    task: Task = load_function(row.function)(
        row, model_directory=model_directory, config=config, tokenizer=tokenizer
    )
    return task


def detect_task(config: Any, *, model_directory: Path | None = None) -> str:
    """Return the name of the task that a model was made for: embedding where it says so, else by the class it was saved as.

    Raises:
        ConfigError: It can't be told.
    """
    embeds = model_directory is not None and embeds_sentences(model_directory)
    architectures = " ".join(getattr(config, "architectures", None) or [])
    for row in TASKS.values():
        if (embeds and row.embeds_sentences) or (
            not embeds and any(head in architectures for head in row.heads)
        ):
            return for_outputs(row.name, config)
    raise ConfigError(
        f"there is no task here for a model saved as {architectures or 'nothing in particular'}",
        where="config.json: architectures",
        hint=_what_to_do(architectures),
    )


def for_outputs(name: str, config: Any) -> str:
    """Return the task; of a model with one output it is a number that is predicted, and no class."""
    one_output = TASKS[name].one_output if name in TASKS else ""
    return one_output if one_output and config.num_labels == 1 else name


def refuse_other_head(name: str, config: Any, *, model_directory: Path) -> None:
    """Refuse a task for which a model that was saved with the head of another would lose it.

    Raises:
        ConfigError: The model has such a head.
    """
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    head = _HEAD.search(architecture)
    if name not in TASKS or head is None or head.group() in TASKS[name].heads:
        return
    if TASKS[name].embeds_sentences and (model_directory / "modules.json").is_file():
        return
    raise ConfigError(
        f"the model was saved as {architecture}, and {name} would run it without that head",
        where=f"`task={name}`",
        hint=_what_to_do(architecture),
    )


def _what_to_do(architecture: str) -> str:
    """Return what to do with a model that was saved as ``architecture``."""
    head = _HEAD.search(architecture)
    if head is None:
        names = ", ".join(f"`task={name}`" for name in TASKS)
        return f"say what it is for: {names}; or {_IN_PYTHON}"
    if any(head.group() in row.heads for row in TASKS.values()):
        return "leave `task` out: the config tells it"
    return f"fine-tune it for a task that is here ({', '.join(TASKS)}), or {_IN_PYTHON}"
