"""Causal language modelling: the text as one stream of tokens, cut into windows, judged by perplexity."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from headprune.batch import Batch, PositionLoss
from headprune.errors import DataError
from headprune.tasks.asked import Fill
from headprune.tasks.chats import prose_of
from headprune.tasks.collate import fill_with_zero, make_batches
from headprune.tasks.data import Columns, Table
from headprune.tasks.distill import TOKENS
from headprune.tasks.rows import Example
from headprune.tasks.task import Task

_SAMPLE = 200  # characters


def to_examples(
    table: Table, columns: Columns, tokenizer: Any, config: Any, max_length: int
) -> tuple[Example, ...]:
    """Join all rows with newlines, tokenise once, cut into windows of ``max_length`` tokens.

    Every window starts as the tokenizer starts a text, with a BOS token, say. That is given, not predicted. A tail of which
    nothing can be predicted is dropped.

    Raises:
        DataError: The text has too few tokens to predict one, or a window hasn't, or a row holds something else than text.
    """
    del config
    column = columns.texts[0]
    rows = range(len(table.rows))
    text = "\n".join(prose_of(table, row, column, tokenizer) for row in rows)
    start = start_of_text(tokenizer, text)
    size = max_length - len(start)
    given = max(1, len(start))
    if max_length <= given:
        raise DataError(
            f"windows of {max_length} tokens leave nothing to predict: the tokenizer starts a text with {len(start)}",
            where="--max-length",
            hint=f"give {given + 1} tokens or more",
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if start and tuple(ids[: len(start)]) == tuple(start):  # a chat template has written it
        ids = ids[len(start) :]
    windows = [(*start, *ids[place : place + size]) for place in range(0, len(ids), size)]
    examples = tuple(
        Example(tokens=window, given=given) for window in windows if len(window) > given
    )
    if not examples:
        raise DataError(
            f"the text has {len(ids)} tokens, and a prediction needs two",
            where=f"--data {table.name}",
            hint="give more text",
        )
    return examples


def start_of_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text: none, or BOS, or what else its models are used to."""
    sample = text.strip()[:_SAMPLE]
    bare = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(sample, verbose=False)["input_ids"]
    starts = range(len(whole) - len(bare) + 1) if bare else ()
    return next((tuple(whole[:n]) for n in starts if whole[n : n + len(bare)] == bare), ())


def to_batches(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    batch_size: int | None,
    accepts: Callable[[str], bool],
    fill: Fill = fill_with_zero,
) -> tuple[Batch, ...]:
    """Give each window one row."""
    del max_length
    rows = [
        ({"input_ids": example.tokens, "attention_mask": [1] * len(example.tokens)},)
        for example in examples
    ]
    return make_batches(
        rows,
        [len(example.tokens) - example.given for example in examples],
        fill=fill,
        batch_size=batch_size,
        target_dtype=torch.long,
        accepts=accepts,
    )


def _summed(logits: Tensor, start: int, batch: Batch) -> Float[Tensor, " examples"]:
    """Summed negative log-likelihood of the tokens after positions ``start`` on: of the window but what it is given."""
    stop = start + logits.shape[1]
    labels = batch.inputs["input_ids"][:, start + 1 : stop + 1]
    real = batch.inputs["attention_mask"]
    places = torch.arange(start + 1, stop + 1, device=real.device)
    given = real.sum(1) - batch.targets
    mask = real[:, start + 1 : stop + 1] * (places >= given[:, None])
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
    """The summed negative log-likelihood, and the number of predicted tokens: what perplexity is made of."""
    return summed_loss(outputs, batch), batch.targets


TASK = Task(
    name="causal-lm",
    auto_class="AutoModelForCausalLM",
    metric="perplexity",
    num_texts=(1,),
    needs_label=False,
    to_examples=to_examples,
    to_batches=to_batches,
    loss=loss,
    predict=predict,
    distill=TOKENS,
    predicted_loss=summed_loss,
    reads_forward=True,
    predicted="likelihoods",
    reads_prose=True,
)
