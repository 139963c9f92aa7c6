"""What a model is asked before rows are made for it: how long they may be, what fills short ones, which way it reads."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import longest_full_attention
from headprune.batch import forward, main_output
from headprune.errors import (
    HeadpruneError,
    ModelError,
    is_out_of_memory,
    package_error,
    what_it_says,
)
from headprune.placement import input_device, not_finite
from headprune.tasks.batches import Fill, Row, pad

_LENGTH = 4  # a few positions show where a table is read from
# How far outputs of a padded row may be from outputs of the unpadded row, as a share of their norm: rounding in another shape.
_ROUNDING = 1e-4
_ROUNDING_OF_HALVES = 0.1

Compared = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""``(outputs, inputs) -> [rows, ...]``: what of a model's outputs counts."""


class _PositionTables(TorchFunctionMode):
    """While it is entered, it notes how many positions fit each embedding table that is read at consecutive indices."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, which torch calls with this mode switched off."""
        if func is functional.embedding:
            indices, table = args[0].squeeze().cpu(), args[1]
            is_row = indices.dim() == 1 and len(indices) >= _LENGTH  # longer where a model pads
            if is_row and bool((indices[:_LENGTH].diff() == 1).all()):
                self.sizes.append(table.shape[0] - int(indices[0]))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def longest_row(model: PreTrainedModel, *, special: Sequence[int] = ()) -> int | None:
    """Return how many tokens a row may have: what the config says, and what fits every table of positions that is read.

    ``special`` are ids that mean more than a word; they are kept out of the trial.

    Where a table is read from is seen in a forward: some families leave its first rows to padding.

    Returns:
        None where nothing limits it.
    """
    config = model.config.get_text_config()
    row = torch.full((1, _LENGTH), _plain_word(model, special), device=input_device(model))
    tables = _PositionTables()
    # A model that dislikes so plain a row has looked its positions up before it says so.
    with tables, suppress(Exception):
        forward(model, {"input_ids": row, "attention_mask": torch.ones_like(row)})
    limits = [config_value(config, name) for name in ("max_position_embeddings", "max_seq_len")]
    limits.append(longest_full_attention(partial(config_value, config)))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min([*tables.sizes, *known], default=None)


def _plain_word(model: PreTrainedModel, special: Sequence[int]) -> int:
    taken = {*special, config_value(model.config.get_text_config(), "pad_token_id")}
    return next(word for word in range(len(taken) + 1) if word not in taken)


def filling(model: PreTrainedModel, compared: Compared, tokenizer: Any) -> Fill:
    """Return the function that says what rows are filled up with: asked once, when rows of different length come.

    A model tells by an id of its own where a text ends, or reads all that it is given, whatever the attention mask says. So the
    ids that could be meant are tried: with the right one a row has the same outputs in a batch as alone. The function returns
    None where there is no such id: then only rows of one length can share a forward.

    Raises:
        ModelError: A row holds an id for which the model has no embedding, or the model fails on one; raised when rows come.
    """
    known: list[int | None] = []
    has_run: list[int] = []

    def fill(rows: Sequence[Row]) -> int | None:
        num_words = _num_words(model)
        _refuse_unknown_ids(model, rows, num_words)
        by_length = {len(row["input_ids"]): row for row in rows}
        ordered = [by_length[length] for length in sorted(by_length)]
        few = [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else []
        if not has_run:
            has_run.extend(by_length)
            for row in {len(row["input_ids"]): row for row in few[::2]}.values():
                _refuse_failing(model, row)
        if not known and len(by_length) > 1:
            # The model's own id first; some configs name one that no table has.
            own = config_value(model.config.get_text_config(), "pad_token_id")
            ids = [
                id_
                for id_ in dict.fromkeys((own, tokenizer.pad_token_id, 0))
                if isinstance(id_, int) and id_ >= 0 and (num_words is None or id_ < num_words)
            ]
            known.append(next((id_ for id_ in ids if _fills(model, compared, few, id_)), None))
        return known[0] if known else None

    return fill


def _refuse_failing(model: PreTrainedModel, row: Row) -> None:
    """Refuse a model that fails on a row alone, or whose outputs are no numbers; what it raises is its own fault."""
    try:
        with torch.no_grad():
            outputs = forward(model, _padded(model, [row], pad_token_id=0))
    except Exception as error:
        if isinstance(error, HeadpruneError) or is_out_of_memory(error):
            raise
        what, where = f"a {type(model).__name__}", "config.json"
        raise package_error(error, what=what, where=where) or ModelError(
            f"the model fails on a row of {len(row['input_ids'])} tokens: {what_it_says(error)}",
            where=f"{what}, {where}",
            hint="check config.json (does it say what the weights were trained with?), `device` and `dtype`",
        ) from error
    _refuse_no_numbers(main_output(outputs), model)


def _refuse_no_numbers(outputs: Tensor, model: PreTrainedModel) -> None:
    """Refuse a model whose outputs are no numbers: whatever they were compared with, the answer would be no, and say nothing."""
    if bool(outputs.isnan().any()):
        raise not_finite("the model's outputs are not finite", model, where="config.json")


def _refuse_unknown_ids(model: PreTrainedModel, rows: Sequence[Row], words: int | None) -> None:
    """Refuse rows with ids that a table of the model doesn't have: on a GPU, nothing would run any more after one."""
    types = config_value(model.config.get_text_config(), "type_vocab_size")
    for name, size in (("input_ids", words), ("token_type_ids", types)):
        largest = max((max(row[name], default=0) for row in rows if name in row), default=0)
        if isinstance(size, int) and 0 < size <= largest:
            raise ModelError(
                f"the tokenizer gives {name} up to {largest:,}, and the model knows {size:,}, from 0 on",
                where="tokenizer.json",
                hint="put the tokenizer that the model was trained with beside the weights, "
                "or enlarge the model: resize_token_embeddings(len(tokenizer))",
            )


def _num_words(model: PreTrainedModel) -> int | None:
    """Return for how many ids a model has an embedding; None where it has no table of them, as models of bytes and hashes."""
    with suppress(NotImplementedError, AttributeError):
        return int(model.get_input_embeddings().get_parameter("weight").shape[0])
    return None


def _padded(model: PreTrainedModel, rows: Sequence[Row], *, pad_token_id: int) -> dict[str, Tensor]:
    device = input_device(model)
    padded = pad(rows, pad_token_id=pad_token_id)
    return {name: value.to(device) for name, value in padded.items()}


@torch.no_grad()
def _fills(
    model: PreTrainedModel, compared: Compared, rows: Sequence[Row], pad_token_id: int
) -> bool:
    """Whether each of the rows has the same outputs alone as in a batch with the last one, filled up with an id."""

    def outputs_of(rows: Sequence[Row]) -> Tensor | None:
        inputs = _padded(model, rows, pad_token_id=pad_token_id)
        try:
            outputs = forward(model, inputs)
        except Exception:  # noqa: BLE001 - a row alone is run again later, where this is heard
            return None
        return compared(outputs, inputs).float()

    together = outputs_of(rows)
    if together is None:
        return False
    for row, padded in zip(rows[:-1], together, strict=False):
        alone = outputs_of([row])
        if alone is None:
            return False
        real = padded[: alone.shape[1]] if alone.dim() > 2 else padded
        if not _is_close(real, alone[0], model):
            return False
    return True


def _is_close(values: Tensor, expected: Tensor, model: PreTrainedModel) -> bool:
    """Whether two outputs differ by rounding alone."""
    rounding = _ROUNDING if torch.finfo(model.dtype).eps < _ROUNDING else _ROUNDING_OF_HALVES
    return bool((values - expected).norm() <= rounding * expected.norm())


@torch.no_grad()
def refuse_reading_ahead(model: PreTrainedModel, *, special: Sequence[int] = ()) -> None:
    """Refuse a model whose prediction of a token reads that token: what it would be measured by is no language modelling.

    Raises:
        ModelError: Other tokens later in a text change the outputs at earlier ones.
    """
    word = _plain_word(model, special)
    other = _plain_word(model, (*special, word))
    rows = torch.full((2, 2 * _LENGTH), word, device=input_device(model))
    rows[1, _LENGTH:] = other
    outputs = forward(model, {"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    _refuse_no_numbers(outputs.logits, model)
    one, two = outputs.logits[:, :_LENGTH].float()
    if not _is_close(two, one, model):
        raise ModelError(
            f"{type(model).__name__} reads tokens ahead: what it says of a token depends on those after it, "
            "so it is no language model that predicts a text word by word",
            where="config.json (is_decoder)",
            hint="load a model that was trained as a decoder, or choose the `task` that this one was trained for",
        )
