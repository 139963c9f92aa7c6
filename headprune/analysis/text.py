"""A text as a model reads it: its row of tokens, and what each token stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.greedy import end_tokens, greedy
from headprune.analysis.maps import Text
from headprune.batch import with_decoder_inputs
from headprune.errors import DataError, UnsupportedError
from headprune.placement import input_device

_MOST_DECODED = 40
_IDS: dict[Text, str] = {"source": "input_ids", "target": "decoder_input_ids"}


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as a model reads it.

    Args:
        inputs: What its forward takes: one row.
        tokens: What the tokens of the source, and of the target, stand for.
        cut: Of a text that was cut, how many tokens it had.
        is_decoded: Whether the model wrote the target itself.
    """

    inputs: Mapping[str, Tensor]
    tokens: dict[Text, tuple[str, ...]]
    cut: dict[Text, int]
    is_decoded: bool = False


def encode(
    model: PreTrainedModel, tokenizer: Any, text: str, pair: str | None, *, longest: int
) -> Encoded:
    """Return what a model is given for a text.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        text: The text; of an encoder-decoder what its encoder reads.
        pair: A second text in the same row; of an encoder-decoder what its decoder reads. Without one it reads what the model
            writes, the most likely token each time.
        longest: How many tokens of each are kept.

    Raises:
        DataError: The tokenizer leaves nothing of a text.
        UnsupportedError: An encoder-decoder that writes nothing, and no text is given for its decoder.
    """
    has_decoder = bool(model.config.is_encoder_decoder)
    texts = (text,) if pair is None or has_decoder else (text, pair)
    row, before = _row(model, tokenizer, *texts, longest=longest)
    cut: dict[Text, int] = {"source": before} if before > longest else {}
    if has_decoder and pair is None:
        row = {**row, "decoder_input_ids": _written(model, row, longest=longest)}
    elif has_decoder and pair is not None:
        target, before = _row(model, tokenizer, longest=longest, text_target=pair)
        cut |= {"target": before} if before > longest else {}
        given = next(iter(with_decoder_inputs(model, [{**row, "labels": target["input_ids"]}])))
        row = {**row, "decoder_input_ids": given["decoder_input_ids"]}
    tokens = {
        text: _token_texts(tokenizer, row[name][0].tolist())
        for text, name in _IDS.items()
        if name in row
    }
    return Encoded(row, tokens, cut, is_decoded=has_decoder and pair is None)


def _row(
    model: PreTrainedModel, tokenizer: Any, *texts: str, longest: int, **target: str
) -> tuple[dict[str, Tensor], int]:
    """Return a row cut at the longest, and how many tokens it had before."""
    before = len(tokenizer(*texts, **target, verbose=False)["input_ids"])
    encoded = tokenizer(*texts, **target, truncation=True, max_length=longest)
    if not encoded["input_ids"]:
        raise DataError(
            "the tokenizer leaves nothing of the text",
            where="`text_pair`" if target else "`text`",
            hint="give a text with words that it knows",
        )
    accepted = signature(model.forward).parameters
    device = input_device(model)
    row = {
        name: torch.tensor([value], device=device)
        for name, value in encoded.items()
        if name in accepted
    }
    return row, before


def _written(
    model: PreTrainedModel, row: Mapping[str, Tensor], *, longest: int
) -> Int[Tensor, "one tokens"]:
    """Return what the model writes, by its most likely token each time, without the token that ends it."""
    if not model.can_generate():
        raise UnsupportedError(
            f"{type(model).__name__} writes nothing by itself, so its decoder has nothing to read",
            where="`text`",
            hint="say what its decoder reads: `text_pair`",
        )
    most = min(_MOST_DECODED, longest - 1)
    written = greedy(model, row, most=most)
    is_ended = int(written[0, -1]) in end_tokens(model)
    return written[:, :-1] if is_ended and written.shape[1] > 1 else written


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return what each token stands for; the tokenizer's own name where that is nothing, or a part of a character."""
    names = tokenizer.convert_ids_to_tokens(list(ids))
    texts = [str(tokenizer.decode([token])) for token in ids]
    return tuple(
        str(name) if not text or "\ufffd" in text else text
        for text, name in zip(texts, names, strict=True)
    )
