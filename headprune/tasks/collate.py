"""From token ids to batches: sorted by length, packed to a token budget, padded on the right."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headprune.batch import Batch
from headprune.errors import DataError
from headprune.tasks.rows import Example

# Tokens per forward when --batch-size is auto: enough to fill the matrix units, little enough for a laptop.
TOKEN_BUDGET = 4096


def pack(
    lengths: Sequence[int], *, batch_size: int | None, budget: int = TOKEN_BUDGET
) -> list[list[int]]:
    """Group indices, sorted by length, so that rows times the longest stays within the budget.

    >>> pack([5, 1, 9, 2], batch_size=None, budget=10)
    [[1, 3], [0], [2]]
    >>> pack([5, 1, 9, 2], batch_size=3)
    [[1, 3, 0], [2]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    groups: list[list[int]] = []
    for index in order:
        size = len(groups[-1]) + 1 if groups else 0
        fits = size and (
            size <= batch_size if batch_size else size * max(1, lengths[index]) <= budget
        )
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pad(rows: Sequence[Mapping[str, Sequence[int]]], *, pad_token_id: int) -> dict[str, Tensor]:
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
    rows_of_example: Sequence[Sequence[Mapping[str, Sequence[int]]]],
    targets: Sequence[float | int],
    *,
    tokenizer: Any,
    batch_size: int | None,
    target_dtype: torch.dtype,
    accepts: Callable[[str], bool],
) -> tuple[Batch, ...]:
    """Build the batches of a task.

    Args:
        rows_of_example: For each example the encoded texts that become rows (two for a pair of sentences).
        targets: One per example.
        tokenizer: Its pad token is used; any id will do where it has none, since padding is masked.
        batch_size: Examples per batch; None packs to the token budget.
        target_dtype: Type of the targets.
        accepts: Whether the model's forward takes an input of this name.
    """
    num_rows = len(rows_of_example[0])
    lengths = [max(len(row["input_ids"]) for row in rows) for rows in rows_of_example]
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    batches: list[Batch] = []
    for members in pack([length * num_rows for length in lengths], batch_size=batch_size):
        # First texts of all examples, then second texts: a pair's rows lie one stride apart.
        rows = [rows_of_example[index][place] for place in range(num_rows) for index in members]
        inputs = pad(rows, pad_token_id=pad_token_id)
        batches.append(
            Batch(
                inputs={name: value for name, value in inputs.items() if accepts(name)},
                targets=torch.tensor([targets[index] for index in members], dtype=target_dtype),
                example_of_row=torch.arange(len(members)).repeat(num_rows),
                indices=torch.tensor(members, dtype=torch.long),
            )
        )
    return tuple(batches)
