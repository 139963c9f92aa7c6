"""Models that put out one thing for a text or a pair: classes, or one number (regression heads, rerankers)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.errors import ModelError
from headprune.tasks.batches import InputFormat, make_batches, require_tokens
from headprune.tasks.catalogue import TaskRow
from headprune.tasks.columns import Columns, examples_of
from headprune.tasks.distill import CLASSES, Distillation, half_square, logits_of
from headprune.tasks.labels import read_classes, read_numbers
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.tasks.task import Task


def build_classification(row: TaskRow, **_model: Any) -> Task:
    """Return the task of models that choose one of several classes."""
    to_batches = partial(_to_batches, target_dtype=torch.long)
    return Task(row, _classes, to_batches, cross_entropy_of, most_probable, CLASSES)


def build_regression(row: TaskRow, **_model: Any) -> Task:
    """Return the task of models that put out one number."""
    distillation = Distillation(
        outputs=logits_of,
        distance=lambda student, teacher, _inputs: half_square(student.float(), teacher.float()),
        targets=_outputs,
        sample=_with_noise,
        loss=lambda outputs, batch: half_square(outputs.logits.float(), batch.targets),
    )
    to_batches = partial(_to_batches, target_dtype=torch.float32)
    return Task(row, _numbers, to_batches, squared_error, output_number, distillation)


def _classes(table: Table, columns: Columns, input_format: InputFormat) -> tuple[Example, ...]:
    """Read texts, and their labels, if any are read, as the model's class indices."""
    config = input_format.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ModelError(
            f"the model has {config.num_labels} outputs and problem type {config.problem_type!r}: "
            "it doesn't choose one of several classes",
            where="config.json",
            hint="no task here does; score it in Python by a loss of your own: headprune.score(model, batches, loss=...)",
        )
    if not columns.label:
        return examples_of(table, columns)
    labels = read_classes(table, columns.label, config)
    for remark in labels.remarks:
        input_format.notify(remark)
    return examples_of(table, columns, labels.indices)


def _numbers(table: Table, columns: Columns, input_format: InputFormat) -> tuple[Example, ...]:
    """Read texts, and their numbers, if any are read, on the scale that they are on."""
    if input_format.config.num_labels != 1:
        raise ModelError(
            f"the model has {input_format.config.num_labels} outputs, and a regression has one",
            where="`task=regression`",
            hint="leave `task` out: the config tells it",
        )
    numbers = read_numbers(table, columns.label) if columns.label else None
    return examples_of(table, columns, numbers)


def _to_batches(
    examples: Sequence[Example], input_format: InputFormat, *, target_dtype: torch.dtype
) -> tuple[Batch, ...]:
    """Give each text, or pair of texts, one row."""
    require_tokens(examples, input_format.tokenizer)
    texts = [list(column) for column in zip(*(e.texts for e in examples), strict=True)]
    encoded = input_format.tokenizer(*texts, truncation=True, max_length=input_format.max_length)
    rows = [({name: encoded[name][row] for name in encoded},) for row in range(len(examples))]
    targets = [example.target or 0 for example in examples]
    return make_batches(rows, targets, input_format, target_dtype=target_dtype)


def cross_entropy_of(outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
    """Return the cross-entropy of the labels."""
    return cross_entropy(outputs.logits.float(), batch.targets, reduction="none")


def most_probable(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the most probable class, nan where a logit is not a number; and the label."""
    unknown = outputs.logits.isnan().any(-1)
    return outputs.logits.argmax(-1).float().masked_fill(unknown, torch.nan), batch.targets


def squared_error(outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
    """Return the squared difference of the output and the number, as transformers trains models of one output."""
    difference: Tensor = outputs.logits[:, 0].float() - batch.targets
    return difference.square()


def output_number(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the output, and the number."""
    return outputs.logits[:, 0], batch.targets


def _outputs(
    model: PreTrainedModel, batch: Batch, _generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 1"]:
    return forward(model, batch.inputs).logits.float()  # type: ignore[no-any-return]


def _with_noise(
    outputs: Float[Tensor, "examples 1"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 1"]:
    noise = torch.stack([torch.randn(1, generator=generator) for generator in generators])
    return outputs + noise
