"""Causal language modelling: the text as one stream of tokens, cut into windows, judged by perplexity."""

from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from headprune.batch import Batch, PositionLoss
from headprune.errors import DataError, first_line
from headprune.tasks.batches import InputFormat, make_batches
from headprune.tasks.catalogue import TaskRow
from headprune.tasks.columns import Columns, text_of
from headprune.tasks.distill import TOKENS
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table
from headprune.tasks.task import Task

_SAMPLE = 200  # characters


def build(row: TaskRow, **_model: Any) -> Task:
    """Return the task of models that predict each token from the preceding tokens."""
    return Task(row, to_examples, to_batches, loss, predict, TOKENS, predicted_loss=summed_loss)


def to_examples(table: Table, columns: Columns, input_format: InputFormat) -> tuple[Example, ...]:
    """Join all rows with newlines, tokenise once, cut into windows of the longest length.

    Every window starts as the tokenizer starts a text, with a BOS token, say. That is given, not predicted. A tail of which
    nothing can be predicted is dropped.

    Raises:
        DataError: The text has too few tokens to predict one, or a window hasn't, or a row holds something else than text.
    """
    tokenizer, max_length = input_format.tokenizer, input_format.max_length
    rows = range(len(table.rows))
    text = "\n".join(prose_of(table, row, columns.texts[0], tokenizer) for row in rows)
    start = start_of_text(tokenizer, text)
    size = max_length - len(start)
    given = max(1, len(start))
    if max_length <= given:
        raise DataError(
            f"windows of {max_length} tokens leave nothing to predict: the tokenizer starts a text with {len(start)}",
            where="`max_length`",
            hint=f"give {given + 1} tokens or more",
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if start and tuple(ids[: len(start)]) == tuple(start):  # a chat template has written it
        ids = ids[len(start) :]
    windows = [(*start, *ids[first : first + size]) for first in range(0, len(ids), size)]
    examples = tuple(
        Example(tokens=window, given=given) for window in windows if len(window) > given
    )
    if not examples:
        raise table.error(
            f"the text has {len(ids)} tokens, and a prediction needs two", hint="give more text"
        )
    return examples


def prose_of(table: Table, row: int, column: str, tokenizer: Any) -> str:
    """Return the text of a row: as it stands there, or a chat by the model's template.

    Raises:
        DataError: The cell is neither, or the model has no template that takes it.
    """
    cell = table.rows[row][column]
    if not is_chat(cell):
        return text_of(table, row, column, may_be_empty=True)
    if not getattr(tokenizer, "chat_template", None):
        raise table.error(
            f"column {column!r} holds chats, and the model's tokenizer has no chat template to write them out",
            hint="name a column of texts with `text`, or give the tokenizer a chat template",
        )
    try:
        return str(tokenizer.apply_chat_template(cell, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        # Templates raise what they like about the order of roles and the keys of messages.
        raise table.error(
            f"{table.name_of(row)} has a chat in column {column!r} that the model's chat template refuses: {first_line(error)}",
            hint="give the messages as the template wants them, or remove the row",
        ) from error


def is_chat(cell: Any) -> bool:
    """Whether a cell is a list of messages, each with a role and a content that are texts."""
    keys = ("role", "content")
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(
            isinstance(message, dict) and all(isinstance(message.get(key), str) for key in keys)
            for message in cell
        )
    )


def start_of_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text: none, or BOS, or what else its models are used to."""
    sample = text.strip()[:_SAMPLE]
    bare = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(sample, verbose=False)["input_ids"]
    starts = range(len(whole) - len(bare) + 1) if bare else ()
    return next((tuple(whole[:n]) for n in starts if whole[n : n + len(bare)] == bare), ())


def to_batches(examples: Sequence[Example], input_format: InputFormat) -> tuple[Batch, ...]:
    """Give each window one row; its target is how many of its tokens are predicted."""
    rows = [
        ({"input_ids": example.tokens, "attention_mask": [1] * len(example.tokens)},)
        for example in examples
    ]
    counts = [len(example.tokens) - example.given for example in examples]
    return make_batches(rows, counts, input_format, target_dtype=torch.long)


def _summed(
    logits: Float[Tensor, "rows positions vocabulary"], start: int, batch: Batch
) -> Float[Tensor, " examples"]:
    """Return the summed negative log-likelihood of the predicted tokens that follow the positions from ``start`` on."""
    stop = start + logits.shape[1]
    labels = batch.inputs["input_ids"][:, start + 1 : stop + 1]
    real = batch.inputs["attention_mask"]
    positions = torch.arange(start + 1, stop + 1, device=real.device)
    given = real.sum(1) - batch.targets
    mask = real[:, start + 1 : stop + 1] * (positions >= given[:, None])
    per_token = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return (per_token.view(labels.shape) * mask).sum(1)


def _mean(logits: Tensor, start: int, batch: Batch) -> Float[Tensor, " examples"]:
    return _summed(logits, start, batch) / batch.targets


def _stop(batch: Batch) -> int:
    return int(batch.inputs["input_ids"].shape[1]) - 1


loss = PositionLoss(_mean, _stop)
"""Mean negative log-likelihood per token: each window counts once, whatever its length."""

summed_loss = PositionLoss(_summed, _stop)
"""Summed negative log-likelihood of each window's tokens but those that it is given."""


def predict(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood, and the number of predicted tokens: what perplexity is made of."""
    return summed_loss(outputs, batch), batch.targets
