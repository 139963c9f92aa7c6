"""Sentence similarity: the cosine of two embeddings against a human score (STS; Cer et al. 2017)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.tasks.batches import InputFormat, make_batches, require_tokens
from headprune.tasks.catalogue import TaskRow
from headprune.tasks.columns import Columns, examples_of
from headprune.tasks.distill import Distillation, half_square
from headprune.tasks.embedder import Embedder, lower_casing, read_embedder
from headprune.tasks.labels import read_numbers
from headprune.tasks.pooling import LAYERS, MASK, SENTENCE, SIMILARITIES, TOKENS
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.tasks.task import Task


def build(row: TaskRow, *, model_directory: Path | None, config: Any, tokenizer: Any) -> Task:
    """Return the task of a model, which embeds as its directory says."""
    embedder = read_embedder(model_directory, config=config, tokenizer=tokenizer)
    pairs = _Pairs(embedder)
    return Task(
        row=replace(row, auto_class=embedder.auto_class),
        to_examples=to_examples,
        to_batches=pairs.to_batches,
        loss=pairs.loss,
        predict=pairs.predict,
        distillation=Distillation(
            outputs=pairs.embed,
            distance=lambda student, teacher, _inputs: half_square(student, teacher),
            targets=pairs.embed_examples,
            sample=with_noise,
            loss=pairs.distance,
        ),
        max_length=embedder.max_length,
        described=embedder.described,
    )


def to_examples(table: Table, columns: Columns, _format: InputFormat) -> tuple[Example, ...]:
    """Read pairs and their scores, if there are any; scores on another scale are mapped from their range to 0 to 1."""
    if not columns.label:
        return examples_of(table, columns)
    scores = read_numbers(table, columns.label)
    present = [score for score in scores if score is not None]
    low, high = min([0.0, *present]), max([1.0, *present])
    scaled = [None if score is None else (score - low) / (high - low) for score in scores]
    return examples_of(table, columns, scaled)


@dataclass(frozen=True)
class _Pairs:
    """The functions of the task, for one way of embedding."""

    embedder: Embedder

    def to_batches(
        self, examples: Sequence[Example], input_format: InputFormat
    ) -> tuple[Batch, ...]:
        """Give each sentence a row of its own: behind the model's prompt, lower-cased where the model says so."""
        require_tokens(examples, input_format.tokenizer)
        texts = [self.embedder.prompt + text for example in examples for text in example.texts]
        tokenizer = lower_casing(input_format.tokenizer, self.embedder.lower_case)
        encoded = tokenizer(texts, truncation=True, max_length=input_format.max_length)
        rows = [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]
        scores = [float(example.target or 0.0) for example in examples]
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        return make_batches(pairs, scores, input_format, target_dtype=torch.float32)

    def embed(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "rows hidden"]:
        """Return the sentences' embeddings, scaled to unit length."""
        return normalize(embedding_of(self.embedder, outputs, inputs), dim=-1)

    def loss(self, outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
        """Return the squared difference of the cosine and the score."""
        first, second = self.embed(outputs, batch.inputs).chunk(2)
        return ((first * second).sum(-1) - batch.targets) ** 2

    def predict(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return how alike the sentences are, by the model's own measure, and the score."""
        first, second = embedding_of(self.embedder, outputs, batch.inputs).chunk(2)
        return SIMILARITIES[self.embedder.similarity](first, second), batch.targets

    def embed_examples(
        self, model: PreTrainedModel, batch: Batch, _generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "examples 2 hidden"]:
        """Return the embeddings of both sentences."""
        rows = self.embed(forward(model, batch.inputs), batch.inputs)
        return torch.stack(rows.chunk(2), dim=1)

    def distance(self, outputs: Any, batch: Batch) -> Float[Tensor, " examples"]:
        """Return how far both sentences are from the targets, together."""
        rows = self.embed(outputs, batch.inputs)
        return half_square(torch.stack(rows.chunk(2), dim=1), batch.targets).sum(-1)


def embedding_of(
    embedder: Embedder, outputs: Any, inputs: Mapping[str, Tensor]
) -> Float[Tensor, "rows hidden"]:
    """Return the sentences' embeddings, as ``SentenceTransformer.encode`` does."""
    hidden = outputs.last_hidden_state.float()
    features = {TOKENS: hidden, MASK: inputs["attention_mask"]}
    layers = getattr(outputs, "hidden_states", None)
    if layers is not None:
        features[LAYERS] = torch.stack([layer.float() for layer in layers])
    for step in embedder.steps:
        features = dict(step(features))
    embedding: Tensor = features[SENTENCE][:, : embedder.dimensions]
    return embedding


def with_noise(
    embeddings: Float[Tensor, "examples 2 hidden"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "examples 2 hidden"]:
    """Return the embeddings, each moved by a normal vector that is about as long as they are."""
    size = embeddings.shape[1:]
    noise = torch.stack([torch.randn(size, generator=g) for g in generators])
    moved: Tensor = embeddings + noise / size[-1] ** 0.5
    return moved
