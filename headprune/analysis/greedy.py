"""Greedy decoding that is greedy: the model's generation settings don't act."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_OF_THE_TARGET = ("forced_bos_token_id", "bad_words_ids")


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the tokens that end a text, by the model's generation settings."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


@torch.no_grad()
def greedy(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, most: int) -> Tensor:
    """Return what a model writes if it takes the most likely token each time: [rows, tokens], as ``generate`` returns it.

    Of its generation settings only those count that name tokens: where a text starts and ends; for an encoder-decoder also the
    target's language, and tokens that no text has. Beams, penalties, least lengths and sampling don't act.

    Args:
        model: A model that can generate, in eval mode.
        inputs: What its forward takes, one row, on its device.
        most: How many tokens it writes at most.
    """
    own = model.generation_config
    names = (*_TOKENS, *(_OF_THE_TARGET if model.config.is_encoder_decoder else ()))
    settings = {name: getattr(own, name, None) for name in names}
    if settings["pad_token_id"] is None:
        settings["pad_token_id"] = next(iter(end_tokens(model)), 0)
    plain = GenerationConfig(**settings, do_sample=False, num_beams=1, max_new_tokens=most)
    # What is None in the settings that ``generate`` is given, it takes from the model's own: those are put aside meanwhile.
    model.generation_config = plain
    try:
        written: Tensor = model.generate(**inputs, generation_config=plain)  # type: ignore[operator]
    finally:
        model.generation_config = own
    return written
