"""Models that put out one number for a text or a pair: regression heads, rerankers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.errors import ModelError
from headprune.tasks.classification import to_batches
from headprune.tasks.data import Columns, Table, texts_of
from headprune.tasks.distill import Distill, logits_of
from headprune.tasks.labels import read_numbers
from headprune.tasks.rows import Example
from headprune.tasks.task import Task


def to_examples(
    table: Table, columns: Columns, tokenizer: Any, config: Any, max_length: int
) -> tuple[Example, ...]:
    """Read texts, and their numbers, if any are read, on the scale that they are on.

    Raises:
        ModelError: The model has several outputs.
    """
    del tokenizer, max_length
    if config.num_labels != 1:
        raise ModelError(
            f"the model has {config.num_labels} outputs, and a regression has one",
            where="--task regression",
            hint="leave --task out: the config tells it",
        )
    count = len(table.rows)
    numbers = read_numbers(table, columns.label) if columns.label else (None,) * count
    return tuple(
        Example(texts_of(table, row, columns), number, where=table.where(row))
        for row, number in enumerate(numbers)
    )


def loss(outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
    """Squared difference of the output and the number, as transformers trains models of one output."""
    difference: Tensor = outputs.logits[:, 0].float() - batch.targets
    return difference.square()


def predict(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The output, and the number."""
    return outputs.logits[:, 0], batch.targets


def _teach(
    model: PreTrainedModel, batch: Batch, _generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 1"]:
    return forward(model, batch.inputs).logits.float()  # type: ignore[no-any-return]


def _with_noise(
    outputs: Float[Tensor, "examples 1"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 1"]:
    noise = torch.stack([torch.randn(1, generator=generator) for generator in generators])
    return outputs + noise


def _apart(said: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared difference."""
    return (said.float() - wanted.float()).square().sum(-1) / 2


TASK = Task(
    name="regression",
    auto_class="AutoModelForSequenceClassification",
    metric="spearman",
    num_texts=(1, 2),
    needs_label=True,
    to_examples=to_examples,
    to_batches=partial(to_batches, target_dtype=torch.float32),
    loss=loss,
    predict=predict,
    distill=Distill(
        name="squared difference",
        said=logits_of,
        distance=lambda said, wanted, _inputs: _apart(said, wanted),
        teach=_teach,
        draw=_with_noise,
        loss=lambda outputs, batch: _apart(outputs.logits, batch.targets),
    ),
)
