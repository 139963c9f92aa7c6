"""Text classification, of single texts and of pairs."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from headprune.batch import Batch
from headprune.errors import DataError, ModelError, did_you_mean
from headprune.tasks.collate import make_batches, require_tokens
from headprune.tasks.data import Columns, Table, texts_of
from headprune.tasks.distill import CLASSES
from headprune.tasks.rows import Example
from headprune.tasks.task import Task


def to_examples(
    table: Table, columns: Columns, tokenizer: Any, config: Any, max_length: int
) -> tuple[Example, ...]:
    """Read texts, and their labels, if there are any, as the model's class indices.

    Raises:
        ModelError: The model doesn't choose one of several classes.
    """
    del tokenizer, max_length
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ModelError(
            f"the model has {config.num_labels} output and problem type {config.problem_type!r}: "
            "it doesn't choose one of several classes",
            where="config.json",
            hint="only single-label classification with two classes or more is supported",
        )
    return tuple(
        Example(
            texts_of(table, row, columns),
            class_index(
                values[columns.label], row, table=table, column=columns.label, config=config
            )
            if columns.label
            else None,
            where=table.where(row),
        )
        for row, values in enumerate(table.rows)
    )


def class_index(label: Any, row: int, *, table: Table, column: str, config: Any) -> int:
    """Return the model's index of a label, given by name or by index.

    Names win: where the data names its classes, index 0 of the data may be index 1 of the model.

    Raises:
        DataError: The model doesn't know the label.
    """
    names = {str(name): int(index) for name, index in config.label2id.items()}
    folded = {name.casefold(): index for name, index in names.items()}
    number = _whole(label)
    own = table.class_names.get(column, ())
    if number is not None and 0 <= number < len(own):
        named = folded.get(own[number].casefold())
        if named is not None:
            return named
    if str(label).casefold() in folded:
        return folded[str(label).casefold()]
    if number is not None and 0 <= number < config.num_labels:
        return number
    raise DataError(
        f"row {row} has the label {label!r}, which the model doesn't know",
        where=f"--data {table.name}",
        hint=did_you_mean(str(label), list(names)[:12]),
    )


def _whole(label: Any) -> int | None:
    """Return a label that is a whole number; a text is one as numbers are written (``1``, ``1.0``), which ``01`` isn't."""
    if isinstance(label, str):
        digits = re.fullmatch(r"\s*(0|[1-9]\d{0,17})(\.0+)?\s*", label)
        return int(digits.group(1)) if digits else None
    is_whole = isinstance(label, int) or (isinstance(label, float) and label.is_integer())
    return int(label) if is_whole else None


def to_batches(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    batch_size: int | None,
    accepts: Callable[[str], bool],
) -> tuple[Batch, ...]:
    """Give each text, or pair of texts, one row."""
    require_tokens(examples, tokenizer)
    columns = [list(column) for column in zip(*(e.texts for e in examples), strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    rows = [({name: encoded[name][row] for name in encoded},) for row in range(len(examples))]
    return make_batches(
        rows,
        [int(example.target or 0) for example in examples],
        tokenizer=tokenizer,
        batch_size=batch_size,
        target_dtype=torch.long,
        accepts=accepts,
    )


def loss(outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
    """Cross-entropy of the label."""
    return cross_entropy(outputs.logits.float(), batch.targets, reduction="none")


def predict(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The most probable class, and the label."""
    return outputs.logits.argmax(-1), batch.targets


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
)
