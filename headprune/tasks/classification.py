"""Text classification, of single texts and of pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from headprune.batch import Batch
from headprune.errors import ModelError
from headprune.tasks.asked import Fill
from headprune.tasks.collate import fill_with_zero, make_batches, require_tokens
from headprune.tasks.data import Columns, Table, texts_of
from headprune.tasks.distill import CLASSES
from headprune.tasks.labels import read_classes
from headprune.tasks.rows import Example
from headprune.tasks.task import Task


def to_examples(
    table: Table, columns: Columns, tokenizer: Any, config: Any, max_length: int
) -> tuple[Example, ...]:
    """Read texts, and their labels, if any are read, as the model's class indices.

    Raises:
        DataError: A label is no class of the model.
        ModelError: The model doesn't choose one of several classes.
    """
    del tokenizer, max_length
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ModelError(
            f"the model has {config.num_labels} outputs and problem type {config.problem_type!r}: "
            "it doesn't choose one of several classes",
            where="config.json",
            hint="no task here does; score it in Python by a loss of your own: headprune.score(model, batches, loss=...)",
        )
    count = len(table.rows)
    labels = (
        read_classes(table, columns.label, config).indices if columns.label else (None,) * count
    )
    return tuple(
        Example(texts_of(table, row, columns), label, where=table.where(row))
        for row, label in enumerate(labels)
    )


def remarks(table: Table, columns: Columns, config: Any) -> tuple[str, ...]:
    """Return how the labels are read, and what is odd about them."""
    return read_classes(table, columns.label, config).remarks if columns.label else ()


def to_batches(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    batch_size: int | None,
    accepts: Callable[[str], bool],
    fill: Fill = fill_with_zero,
    target_dtype: torch.dtype = torch.long,
) -> tuple[Batch, ...]:
    """Give each text, or pair of texts, one row."""
    require_tokens(examples, tokenizer)
    columns = [list(column) for column in zip(*(e.texts for e in examples), strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    rows = [({name: encoded[name][row] for name in encoded},) for row in range(len(examples))]
    return make_batches(
        rows,
        [example.target or 0 for example in examples],
        fill=fill,
        batch_size=batch_size,
        target_dtype=target_dtype,
        accepts=accepts,
    )


def loss(outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
    """Cross-entropy of the label."""
    return cross_entropy(outputs.logits.float(), batch.targets, reduction="none")


def predict(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The most probable class, none where a logit is not a number; and the label."""
    unknown = outputs.logits.isnan().any(-1)
    return outputs.logits.argmax(-1).float().masked_fill(unknown, torch.nan), batch.targets


TASK = Task(
    name="classification",
    auto_class="AutoModelForSequenceClassification",
    metric="accuracy",
    num_texts=(1, 2),
    needs_label=True,
    to_examples=to_examples,
    to_batches=to_batches,
    loss=loss,
    predict=predict,
    distill=CLASSES,
    predicted="classes",
    remarks=remarks,
)
