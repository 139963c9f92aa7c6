"""Texts as they are, for models that have no task here: their heads are looked at, and nothing is predicted or scored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from headprune.batch import Batch
from headprune.errors import ConfigError
from headprune.tasks.batches import InputFormat, Row, make_batches, pad, require_tokens
from headprune.tasks.catalogue import TaskRow
from headprune.tasks.columns import Columns, examples_of
from headprune.tasks.distill import CLASSES
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.tasks.task import Task

_ROW = TaskRow(
    name="text",
    help="texts as they are",
    function="headprune.tasks.plain:plain_task",
    auto_class="",
    metric="",
    predicts="numbers",
    label="",
    distance="",
)


def plain_task() -> Task:
    """Return the task of models that are only looked at: a text, or a text for the encoder and one for the decoder."""
    return Task(_ROW, _examples, _batches, _nothing, _nothing, CLASSES)


def _examples(table: Table, columns: Columns, input_format: InputFormat) -> tuple[Example, ...]:
    return examples_of(table, columns)


def _batches(examples: Sequence[Example], input_format: InputFormat) -> tuple[Batch, ...]:
    """Tokenize texts. A decoder is given the second text; without one, the first, so that it says it again."""
    tokenizer, config = input_format.tokenizer, input_format.config
    require_tokens(examples, tokenizer)

    def encoded(text: str, *pair: str) -> Row:
        row: Row = dict(tokenizer(text, *pair, truncation=True, max_length=input_format.max_length))
        return row

    both = bool(getattr(config, "is_encoder_decoder", False))
    rows = [encoded(*(one.texts[:1] if both else one.texts)) for one in examples]
    padding = tokenizer.pad_token_id or 0
    batches = make_batches(
        [[row] for row in rows],
        [0] * len(rows),
        replace(input_format, fill=lambda _rows: padding),
        target_dtype=torch.long,
    )
    if not both:
        return batches
    start = config.decoder_start_token_id or 0
    said = [[start, *encoded(one.texts[-1])["input_ids"][:-1]] for one in examples]
    return tuple(with_decoder(batch, said, padding) for batch in batches)


def with_decoder(batch: Batch, said: Sequence[Sequence[int]], padding: int) -> Batch:
    """Return a batch with what the decoder has said of each example, padded with ``padding``."""
    rows: list[Row] = [
        {"input_ids": said[index], "attention_mask": [1] * len(said[index])}
        for index in batch.indices.tolist()
    ]
    own = {f"decoder_{name}": value for name, value in pad(rows, pad_token_id=padding).items()}
    return replace(batch, inputs={**batch.inputs, **own})


def _nothing(outputs: Any, batch: Batch) -> Any:
    """Refuse to predict, or to score."""
    raise ConfigError(
        "the model is only looked at: there is no task for it here",
        where="`task`",
        hint="name a task that it can do",
    )
