"""From token ids to batches: sorted by length, packed to a token budget, padded on the right where the model bears it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from headprune.batch import Batch
from headprune.errors import DataError, ModelError
from headprune.tasks.asked import Fill, Row, pad
from headprune.tasks.rows import Example

# Tokens per forward when --batch-size is auto: enough to fill the matrix units, little enough for a laptop.
TOKEN_BUDGET = 4096


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


def require_tokens(examples: Sequence[Example], tokenizer: Any) -> None:
    """Refuse texts of which the tokenizer leaves nothing.

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
    *,
    fill: Fill,
    batch_size: int | None,
    target_dtype: torch.dtype,
    accepts: Callable[[str], bool],
) -> tuple[Batch, ...]:
    """Build the batches of a task.

    Args:
        rows_of_example: For each example the encoded texts that become rows (two for a pair of sentences).
        targets: One per example.
        fill: Says which id rows are filled up with; None where only rows of one length may share a forward.
        batch_size: Examples per batch; None packs to the token budget.
        target_dtype: Type of the targets.
        accepts: Whether the model's forward takes an input of this name.

    Raises:
        ModelError: The texts of a pair differ in length, and the model bears no padding.
    """
    encoded = [[_inputs(row, accepts) for row in rows] for rows in rows_of_example]
    num_rows = len(encoded[0])
    lengths = [[len(row["input_ids"]) for row in rows] for rows in encoded]
    pad_token_id = fill([row for rows in encoded for row in rows])
    if pad_token_id is None and any(len(set(pair)) > 1 for pair in lengths):
        raise ModelError(
            "the model's outputs change where a text is padded, and the texts of a pair differ in length",
            where="the model's padding",
            hint="--task classification reads a pair as one row; other models bear padding",
        )
    batches: list[Batch] = []
    for members in pack(
        [max(pair) * num_rows for pair in lengths],
        batch_size=batch_size,
        alike=pad_token_id is None,
    ):
        # First texts of all examples, then second texts: a pair's rows lie one stride apart.
        rows = [encoded[index][place] for place in range(num_rows) for index in members]
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
    """Return of an encoded text what the model takes, and which of its tokens are real where the tokenizer doesn't say so."""
    known = {"attention_mask": [1] * len(row["input_ids"]), **row}
    return {name: value for name, value in known.items() if accepts(name)}


def fill_with_zero(_rows: Sequence[Row]) -> int:
    """Fill up with id 0: for rows of which only the texts matter."""
    return 0
