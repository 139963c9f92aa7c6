"""From token ids to batches: sorted by length, packed to a token budget, padded on the right if the model supports padding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from headprune.batch import Batch
from headprune.errors import DataError, ModelError
from headprune.tasks.rows import Example

Row: TypeAlias = Mapping[str, Sequence[int]]
"""An encoded text, as a tokenizer gives it."""

Fill: TypeAlias = Callable[[Sequence[Row]], int | None]
"""Says which id rows are filled up with; None where only rows of one length may share a forward."""

# Tokens per forward when no batch size is given: enough to fill the matrix units, little enough for a laptop.
TOKEN_BUDGET = 4096


def fill_with_zero(_rows: Sequence[Row]) -> int:
    """Pad with id 0: for rows whose padding doesn't matter."""
    return 0


def accept_all(_name: str) -> bool:
    """Accept every input: for models that take all that their tokenizer gives."""
    return True


def ignore(_message: str) -> None:
    """Drop a message."""


@dataclass(frozen=True)
class InputFormat:
    """How texts become a model's inputs.

    Args:
        tokenizer: The model's tokenizer.
        max_length: The longest row, in tokens.
        config: The model's config, which names its classes.
        batch_size: Examples per batch; None packs to a budget of tokens.
        accepts: Whether the model's forward takes an input of this name.
        fill: Returns the id that short rows are padded with.
        notify: Called with remarks about unusual labels.
    """

    tokenizer: Any
    max_length: int
    config: Any = None
    batch_size: int | None = None
    accepts: Callable[[str], bool] = accept_all
    fill: Fill = fill_with_zero
    notify: Callable[[str], None] = ignore


def pack(
    lengths: Sequence[int],
    *,
    batch_size: int | None,
    budget: int = TOKEN_BUDGET,
    alike: bool = False,
) -> list[list[int]]:
    """Group indices, sorted by length, so that rows times the longest stays within the budget.

    Args:
        lengths: Of the rows.
        batch_size: Rows in a group; None packs to the budget.
        budget: Tokens in a group.
        alike: Whether all rows of a group must have the same length.

    >>> pack([5, 1, 9, 2], batch_size=None, budget=10)
    [[1, 3], [0], [2]]
    >>> pack([5, 1, 9, 2], batch_size=3)
    [[1, 3, 0], [2]]
    >>> pack([5, 1, 5, 1], batch_size=3, alike=True)
    [[1, 3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    groups: list[list[int]] = []
    for index in order:
        size = len(groups[-1]) + 1 if groups else 0
        fits = size and (
            size <= batch_size if batch_size else size * max(1, lengths[index]) <= budget
        )
        if fits and not (alike and lengths[groups[-1][0]] != lengths[index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pad(rows: Sequence[Row], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Stack encoded rows, padded on the right whatever the tokenizer's own habit is.

    Position ids are counted from the left by most models, so padding on the left would shift them.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: torch.tensor(
            [list(row[name]) + [value] * (longest - len(row[name])) for row in rows],
            dtype=torch.long,
        )
        for name, value in fill.items()
        if name in rows[0]
    }


def require_tokens(examples: Sequence[Example], tokenizer: Any) -> None:
    """Refuse texts without tokens.

    Raises:
        DataError: There is one.
    """
    for column in zip(*(example.texts for example in examples), strict=True):
        ids = tokenizer(list(column), add_special_tokens=False, verbose=False)["input_ids"]
        for example, text, tokens in zip(examples, column, ids, strict=True):
            if not tokens:
                raise DataError(
                    f"a text has no tokens: {text[:60]!r}",
                    where=example.where,
                    hint="remove the row: the model's tokenizer knows nothing of this text",
                )


def make_batches(
    rows_of_example: Sequence[Sequence[Row]],
    targets: Sequence[float | int],
    input_format: InputFormat,
    *,
    target_dtype: torch.dtype,
) -> tuple[Batch, ...]:
    """Build the batches of a task.

    Args:
        rows_of_example: For each example the encoded texts that become rows (two for a pair of sentences).
        targets: One per example.
        input_format: What the model takes, and how many examples make a batch.
        target_dtype: Type of the targets.

    Raises:
        ModelError: The texts of a pair differ in length, and the model doesn't support padding.
    """
    encoded = [[_inputs(row, input_format.accepts) for row in rows] for rows in rows_of_example]
    num_rows = len(encoded[0])
    lengths = [[len(row["input_ids"]) for row in rows] for rows in encoded]
    pad_token_id = input_format.fill([row for rows in encoded for row in rows])
    if pad_token_id is None and any(len(set(pair)) > 1 for pair in lengths):
        raise ModelError(
            "the model's outputs change where a text is padded, and the texts of a pair differ in length",
            where="the model's padding",
            hint="`task=classification` reads a pair as one row; other models bear padding",
        )
    groups = pack(
        [max(pair) * num_rows for pair in lengths],
        batch_size=input_format.batch_size,
        alike=pad_token_id is None,
    )
    batches: list[Batch] = []
    for members in groups:
        # First texts of all examples, then second texts: a pair's rows lie one stride apart.
        rows = [encoded[index][text] for text in range(num_rows) for index in members]
        batches.append(
            Batch(
                inputs=pad(rows, pad_token_id=pad_token_id or 0),
                targets=torch.tensor([targets[index] for index in members], dtype=target_dtype),
                example_of_row=torch.arange(len(members)).repeat(num_rows),
                indices=torch.tensor(members, dtype=torch.long),
            )
        )
    return tuple(batches)


def _inputs(row: Row, accepts: Callable[[str], bool]) -> Row:
    """Return the inputs that the model takes of an encoded text, with an attention mask if the tokenizer gives none."""
    known = {"attention_mask": [1] * len(row["input_ids"]), **row}
    return {name: value for name, value in known.items() if accepts(name)}


def batches_of_ids(
    rows: Sequence[Sequence[int]], *, batch_size: int, pad_token_id: int = 0
) -> tuple[Batch, ...]:
    """Return rows of token ids as batches of rows of alike length, without targets.

    Args:
        rows: Token ids, one row an example.
        batch_size: Rows in a batch.
        pad_token_id: What short rows are padded with.
    """
    encoded = [[{"input_ids": row, "attention_mask": [1] * len(row)}] for row in rows]
    as_given = InputFormat(
        tokenizer=None, max_length=0, batch_size=batch_size, fill=lambda _rows: pad_token_id
    )
    return make_batches(encoded, [0] * len(rows), as_given, target_dtype=torch.long)
