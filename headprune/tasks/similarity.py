"""Sentence similarity: the cosine of two embeddings against a human score (STS; Cer et al. 2017)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.tasks.collate import make_batches, require_tokens
from headprune.tasks.data import Columns, Table, number_of, texts_of
from headprune.tasks.distill import Distill
from headprune.tasks.rows import Example
from headprune.tasks.task import Task


def to_examples(
    table: Table, columns: Columns, tokenizer: Any, config: Any, max_length: int
) -> tuple[Example, ...]:
    """Read pairs and their scores, if there are any; those on another scale than 0 to 1 are mapped from their range to 0 to 1."""
    del tokenizer, config, max_length
    if not columns.label:
        return tuple(
            Example(texts_of(table, row, columns), where=table.where(row))
            for row in range(len(table.rows))
        )
    scores = [number_of(table, row, columns.label) for row in range(len(table.rows))]
    low, high = min(0.0, *scores), max(1.0, *scores)
    return tuple(
        Example(
            texts_of(table, row, columns),
            (score - low) / (high - low),
            where=table.where(row),
        )
        for row, score in enumerate(scores)
    )


def to_batches(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    batch_size: int | None,
    accepts: Callable[[str], bool],
) -> tuple[Batch, ...]:
    """Give each sentence a row of its own."""
    require_tokens(examples, tokenizer)
    texts = [text for example in examples for text in example.texts]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    rows = [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]
    return make_batches(
        list(zip(rows[::2], rows[1::2], strict=True)),
        [float(example.target or 0.0) for example in examples],
        tokenizer=tokenizer,
        batch_size=batch_size,
        target_dtype=torch.float32,
        accepts=accepts,
    )


def embed(
    outputs: Any, inputs: Mapping[str, Tensor], *, pooling: str
) -> Float[Tensor, "rows hidden"]:
    """Return unit-length sentence embeddings: the mean over real tokens, or the first token."""
    hidden = outputs.last_hidden_state.float()
    if pooling == "cls":
        return normalize(hidden[:, 0], dim=-1)
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def cosine(outputs: Any, batch: Batch, *, pooling: str) -> Float[Tensor, " examples"]:
    """Return the cosine of each pair's embeddings."""
    first, second = embed(outputs, batch.inputs, pooling=pooling).chunk(2)
    return (first * second).sum(-1)


def loss(outputs: Any, batch: Batch, *, pooling: str) -> Float[Tensor, " examples"]:
    """Squared difference of the cosine and the score."""
    return (cosine(outputs, batch, pooling=pooling) - batch.targets) ** 2


def predict(outputs: Any, batch: Batch, *, pooling: str) -> tuple[Tensor, Tensor]:
    """The cosine, and the score."""
    return cosine(outputs, batch, pooling=pooling), batch.targets


def embed_examples(
    model: PreTrainedModel, batch: Batch, _generators: Sequence[torch.Generator], *, pooling: str
) -> Float[Tensor, "examples 2 hidden"]:
    """Return the embeddings of both sentences."""
    found = embed(forward(model, batch.inputs), batch.inputs, pooling=pooling)
    return torch.stack(found.chunk(2), dim=1)


def with_noise(
    embeddings: Float[Tensor, "examples 2 hidden"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 2 hidden"]:
    """Return the embeddings, each moved by a normal vector that is about as long as they are."""
    size = embeddings.shape[1:]
    noise = torch.stack([torch.randn(size, generator=g) for g in generators])
    moved: Tensor = embeddings + noise / size[-1] ** 0.5
    return moved


def apart(
    said: Float[Tensor, "*rows hidden"], wanted: Float[Tensor, "*rows hidden"]
) -> Float[Tensor, "*rows"]:
    """Half the squared distance of two embeddings: of unit vectors it is 1 less their cosine."""
    half: Tensor = (said - wanted).square().sum(-1) / 2
    return half


def distance(outputs: Any, batch: Batch, *, pooling: str) -> Float[Tensor, " examples"]:
    """How far both sentences are from the targets, together."""
    found = embed(outputs, batch.inputs, pooling=pooling)
    return apart(torch.stack(found.chunk(2), dim=1), batch.targets).sum(-1)


def _distill(pooling: str) -> Distill:
    return Distill(
        name="cosine distance",
        said=partial(embed, pooling=pooling),
        distance=lambda said, wanted, _inputs: apart(said, wanted),
        teach=partial(embed_examples, pooling=pooling),
        draw=with_noise,
        loss=partial(distance, pooling=pooling),
    )


TASK = Task(
    name="similarity",
    auto_class="AutoModel",
    metric="spearman",
    num_texts=(2,),
    needs_label=True,
    to_examples=to_examples,
    to_batches=to_batches,
    loss=partial(loss, pooling="mean"),
    predict=partial(predict, pooling="mean"),
    distill=_distill("mean"),
)


def with_pooling(pooling: str) -> Task:
    """Return the task for a model that pools in this way: ``mean`` or ``cls``."""
    return replace(
        TASK,
        loss=partial(loss, pooling=pooling),
        predict=partial(predict, pooling=pooling),
        distill=_distill(pooling),
    )
