"""What is asked of a model before rows are made for it: how long they may be, what fills short ones, which way it reads."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import longest_row_in_full
from headprune.batch import forward, main_output
from headprune.errors import (
    HeadpruneError,
    ModelError,
    is_out_of_memory,
    package_error,
    what_it_says,
)
from headprune.placement import input_device, not_finite

Row: TypeAlias = Mapping[str, Sequence[int]]
"""An encoded text, as a tokenizer gives it."""

Fill: TypeAlias = Callable[[Sequence[Row]], int | None]
"""Says which id rows are filled up with; None where only rows of one length may share a forward."""

_LENGTH = 4  # a few positions show where a table is read from
# How far the outputs of a padded row may be from those of the row alone, as a share of their norm: rounding in another shape.
_ROUNDING = 1e-4
_ROUNDING_OF_HALVES = 0.1


class _PositionTables(TorchFunctionMode):
    """While it is entered, it notes how many positions fit each embedding table that is read at one place after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, which torch calls with this mode switched off."""
        if func is functional.embedding:
            self._note(*args[:2])
        return func(*args, **(kwargs or {}))

    def _note(self, places: Tensor, table: Tensor) -> None:
        places = places.squeeze().cpu()
        if places.dim() != 1 or len(places) < _LENGTH:  # longer where a model pads for itself
            return
        if bool((places[:_LENGTH].diff() == 1).all()):
            self.fits.append(table.shape[0] - int(places[0]))


@torch.no_grad()
def longest_row(model: PreTrainedModel, *, special: Sequence[int] = ()) -> int | None:
    """Return how many tokens a row may have: what the config says, and what fits every table of positions that is read.

    Where a table is read from is seen in a forward: some families leave its first rows to padding.

    Args:
        model: The model.
        special: Ids that mean more than a word; they are kept out of the trial.

    Returns:
        None where nothing limits it.
    """
    config = model.config.get_text_config()
    row = torch.full((1, _LENGTH), _plain_word(model, special), device=input_device(model))
    tables = _PositionTables()
    # A model that dislikes so plain a row has looked its positions up before it says so.
    with tables, suppress(Exception):
        forward(model, {"input_ids": row, "attention_mask": torch.ones_like(row)})
    said = [config_value(config, name) for name in ("max_position_embeddings", "max_seq_len")]
    said.append(longest_row_in_full(partial(config_value, config)))
    limits = [*tables.fits, *(limit for limit in said if isinstance(limit, int) and limit > 0)]
    return min(limits, default=None)


def _plain_word(model: PreTrainedModel, special: Sequence[int]) -> int:
    config = model.config.get_text_config()
    taken = {*special, config_value(config, "pad_token_id")}
    return next(word for word in range(len(taken) + 1) if word not in taken)


def filling(
    model: PreTrainedModel, said: Callable[[Any, Mapping[str, Tensor]], Tensor], tokenizer: Any
) -> Fill:
    """Return the function that says what rows are filled up with: asked once, when rows of different length come.

    A model tells by an id of its own where a text ends, or reads all that it is given, whatever the attention mask says. So the
    ids that could be meant are tried: with the right one a row says in a batch what it says alone. The function returns None
    where there is no such id: then only rows of one length can share a forward.

    Args:
        model: The model.
        said: ``(outputs, inputs) -> [rows, ...]``: what of its outputs counts.
        tokenizer: Its tokenizer, whose pad token is tried after the model's own.

    Raises:
        ModelError: A row holds an id for which the model has no embedding; raised when rows come.
    """
    known: list[int | None] = []
    has_run: list[int] = []

    def fill(rows: Sequence[Row]) -> int | None:
        _refuse_unknown_ids(model, rows)
        lengths = {len(row["input_ids"]): row for row in rows}
        ordered = [lengths[length] for length in sorted(lengths)]
        few = [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else []
        if not has_run:
            has_run.extend(lengths)
            for row in {len(row["input_ids"]): row for row in few[::2]}.values():
                _refuse_failing(model, row)
        if not known and len(lengths) > 1:
            ids = _candidates(model, tokenizer)
            known.append(next((id_ for id_ in ids if _fills(model, said, few, id_)), None))
        return known[0] if known else None

    return fill


def _refuse_failing(model: PreTrainedModel, row: Row) -> None:
    """Refuse a model that fails on a row alone, or whose outputs are no numbers; it runs as it is, so what it raises is its own.

    Raises:
        ModelError: It does.
    """
    inputs = pad([row], pad_token_id=0)
    try:
        with torch.no_grad():
            inputs = {name: value.to(input_device(model)) for name, value in inputs.items()}
            outputs = forward(model, inputs)
    except Exception as error:
        if isinstance(error, HeadpruneError) or is_out_of_memory(error):
            raise
        what, where = f"a {type(model).__name__}", "config.json"
        raise package_error(error, what=what, where=where) or ModelError(
            f"the model fails on a row of {len(row['input_ids'])} tokens: {what_it_says(error)}",
            where=f"{what}, {where}",
            hint="check config.json (does it say what the weights were trained with?), --device and --dtype",
        ) from error
    _refuse_no_numbers(main_output(outputs), model)


def _refuse_no_numbers(outputs: Tensor, model: PreTrainedModel) -> None:
    """Refuse a model whose outputs are no numbers: whatever they were compared with, the answer would be no, and say nothing.

    Raises:
        ModelError: They are.
    """
    if bool(outputs.isnan().any()):
        raise not_finite("the model's outputs are not finite", model, where="config.json")


def _refuse_unknown_ids(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    """Refuse rows with ids that a table of the model doesn't have: on a GPU, nothing would run any more after one.

    Raises:
        ModelError: There are such.
    """
    words = _num_words(model)
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


def _candidates(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Return the ids that may stand for padding, the model's own first; some configs name one that no table has."""
    words = _num_words(model)
    own = config_value(model.config.get_text_config(), "pad_token_id")
    ids = dict.fromkeys((own, tokenizer.pad_token_id, 0))
    return [
        id_ for id_ in ids if isinstance(id_, int) and id_ >= 0 and (words is None or id_ < words)
    ]


def _num_words(model: PreTrainedModel) -> int | None:
    """Return for how many ids a model has an embedding; None where it has no table of them, as models of bytes and hashes."""
    with suppress(NotImplementedError, AttributeError):
        return int(model.get_input_embeddings().get_parameter("weight").shape[0])
    return None


@torch.no_grad()
def _fills(
    model: PreTrainedModel,
    said: Callable[[Any, Mapping[str, Tensor]], Tensor],
    rows: Sequence[Row],
    pad_token_id: int,
) -> bool:
    """Whether each of the rows says the same alone as in a batch with the last one, filled up with an id."""
    together = _outputs(model, pad(rows, pad_token_id=pad_token_id), said)
    if together is None:
        return False
    rounding = _ROUNDING if torch.finfo(model.dtype).eps < _ROUNDING else _ROUNDING_OF_HALVES
    for row, padded in zip(rows[:-1], together, strict=False):
        alone = _outputs(model, pad([row], pad_token_id=pad_token_id), said)
        if alone is None:
            return False
        real = padded[: alone.shape[1]] if alone.dim() > 2 else padded
        if not bool((real - alone[0]).norm() <= rounding * alone.norm()):
            return False
    return True


def _outputs(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    said: Callable[[Any, Mapping[str, Tensor]], Tensor],
) -> Tensor | None:
    """Return what a model says of rows, or None where it refuses them, each family in its own way."""
    inputs = {name: value.to(input_device(model)) for name, value in inputs.items()}
    try:
        outputs = forward(model, inputs)
    except Exception:  # noqa: BLE001 - a row alone is run again later, where this is heard
        return None
    return said(outputs, inputs).float()


def pad(rows: Sequence[Row], *, pad_token_id: int) -> dict[str, Tensor]:
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


@torch.no_grad()
def refuse_reading_ahead(model: PreTrainedModel, *, special: Sequence[int] = ()) -> None:
    """Refuse a model whose prediction of a token reads that token: what it would be measured by is no language modelling.

    Raises:
        ModelError: Other tokens later in a text change what is said of earlier ones.
    """
    word = _plain_word(model, special)
    other = _plain_word(model, (*special, word))
    rows = torch.full((2, 2 * _LENGTH), word, device=input_device(model))
    rows[1, _LENGTH:] = other
    outputs = forward(model, {"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    _refuse_no_numbers(outputs.logits, model)
    one, two = outputs.logits[:, :_LENGTH].float()
    rounding = _ROUNDING if torch.finfo(model.dtype).eps < _ROUNDING else _ROUNDING_OF_HALVES
    if not bool((one - two).norm() <= rounding * one.norm()):
        raise ModelError(
            f"{type(model).__name__} reads tokens ahead: what it says of a token depends on those after it, "
            "so it is no language model that predicts a text word by word",
            where="config.json (is_decoder)",
            hint="load a model that was trained as a decoder, or choose the --task that this one was trained for",
        )
