"""Sentence similarity: the cosine of two embeddings against a human score (STS; Cer et al. 2017)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.tasks.asked import Fill
from headprune.tasks.collate import fill_with_zero, make_batches, require_tokens
from headprune.tasks.data import Columns, Table, texts_of
from headprune.tasks.distill import Distill
from headprune.tasks.embedder import MEAN, Embedder, embedding_of, lower_casing
from headprune.tasks.embedding import compare
from headprune.tasks.labels import read_numbers
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
    scores = read_numbers(table, columns.label)
    present = [score for score in scores if score is not None]
    low, high = min([0.0, *present]), max([1.0, *present])
    return tuple(
        Example(
            texts_of(table, row, columns),
            None if score is None else (score - low) / (high - low),
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
    fill: Fill = fill_with_zero,
    *,
    embedder: Embedder,
) -> tuple[Batch, ...]:
    """Give each sentence a row of its own: behind the model's prompt, lower-cased where the model says so."""
    require_tokens(examples, tokenizer)
    texts = [embedder.prompt + text for example in examples for text in example.texts]
    encoded = lower_casing(tokenizer, embedder.lower_case)(
        texts, truncation=True, max_length=max_length
    )
    rows = [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]
    return make_batches(
        list(zip(rows[::2], rows[1::2], strict=True)),
        [float(example.target or 0.0) for example in examples],
        fill=fill,
        batch_size=batch_size,
        target_dtype=torch.float32,
        accepts=accepts,
    )


def embed(
    outputs: Any, inputs: Mapping[str, Tensor], *, embedder: Embedder
) -> Float[Tensor, "rows hidden"]:
    """Return the sentences' embeddings, scaled to unit length."""
    return normalize(embedding_of(embedder, outputs, inputs), dim=-1)


def loss(outputs: Any, batch: Batch, *, embedder: Embedder) -> Float[Tensor, " examples"]:
    """Squared difference of the cosine and the score."""
    first, second = embed(outputs, batch.inputs, embedder=embedder).chunk(2)
    return ((first * second).sum(-1) - batch.targets) ** 2


def predict(outputs: Any, batch: Batch, *, embedder: Embedder) -> tuple[Tensor, Tensor]:
    """How alike the sentences are, by the model's own measure, and the score."""
    first, second = embedding_of(embedder, outputs, batch.inputs).chunk(2)
    return compare(first, second, similarity=embedder.similarity), batch.targets


def embed_examples(
    model: PreTrainedModel,
    batch: Batch,
    _generators: Sequence[torch.Generator],
    *,
    embedder: Embedder,
) -> Float[Tensor, "examples 2 hidden"]:
    """Return the embeddings of both sentences."""
    rows = embed(forward(model, batch.inputs), batch.inputs, embedder=embedder)
    return torch.stack(rows.chunk(2), dim=1)


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


def distance(outputs: Any, batch: Batch, *, embedder: Embedder) -> Float[Tensor, " examples"]:
    """How far both sentences are from the targets, together."""
    rows = embed(outputs, batch.inputs, embedder=embedder)
    return apart(torch.stack(rows.chunk(2), dim=1), batch.targets).sum(-1)


def with_embedder(embedder: Embedder) -> Task:
    """Return the task for a model that embeds in this way."""
    return Task(
        name="similarity",
        auto_class=embedder.auto_class,
        metric="spearman",
        num_texts=(2,),
        needs_label=True,
        to_examples=to_examples,
        to_batches=partial(to_batches, embedder=embedder),
        loss=partial(loss, embedder=embedder),
        predict=partial(predict, embedder=embedder),
        distill=Distill(
            name="cosine distance",
            said=partial(embed, embedder=embedder),
            distance=lambda said, wanted, _inputs: apart(said, wanted),
            teach=partial(embed_examples, embedder=embedder),
            draw=with_noise,
            loss=partial(distance, embedder=embedder),
        ),
        max_length=embedder.max_length,
        described=embedder.described,
    )


TASK = with_embedder(MEAN)
