"""What an encoder-decoder gives its decoder when it is given labels: asked of the model, which shifts them in its own way."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.batch import Batch, as_batches
from headprune.errors import DataError, with_type
from headprune.placement import input_device

_OWN = ("decoder_input_ids", "decoder_inputs_embeds")
_MASK = "decoder_attention_mask"


class _DecoderReachedError(Exception):
    """Ends a forward where its decoder starts."""


def batches_for(
    model: PreTrainedModel, batches: Iterable[Batch | Mapping[str, Tensor]]
) -> tuple[Batch, ...]:
    """Return the batches of a model; see :func:`with_decoder_inputs` and :func:`headprune.batch.as_batches`."""
    return as_batches(with_decoder_inputs(model, batches))


def with_decoder_inputs(
    model: PreTrainedModel, batches: Iterable[Batch | Mapping[str, Tensor]]
) -> Iterable[Batch | Mapping[str, Tensor]]:
    """Yield the batches; where labels are sequences for an encoder-decoder, with the decoder inputs that it makes of them.

    Labels that are no sequences (classes) leave the decoder what the model gives it without any.

    Raises:
        DataError: The model makes none.
    """
    for batch in batches:
        labels = None if isinstance(batch, Batch) else batch.get("labels")
        takes_labels = bool(getattr(model.config, "is_encoder_decoder", False))
        if (
            isinstance(batch, Batch)
            or labels is None
            or labels.dim() < 2
            or not takes_labels
            or any(batch.get(name) is not None for name in _OWN)
        ):
            yield batch
        else:
            yield {**batch, **_shifted(model, batch)}


def _shifted(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what reaches the decoder in the model's own forward with labels: tokens, and a mask where some are hidden.

    Raises:
        DataError: Nothing does.
    """
    decoder = model.get_decoder()
    reached: list[tuple[Any, Any]] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        reached.append((tokens, kwargs.get("attention_mask")))
        raise _DecoderReachedError

    handle = decoder.register_forward_pre_hook(catch, with_kwargs=True)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), suppress(_DecoderReachedError):
            model(**{name: value.to(input_device(model)) for name, value in batch.items()})
    except Exception as error:  # of the model, given what the user gave
        raise _refusal(model, f"{with_type(error)}") from error
    finally:
        handle.remove()
        for module in training:
            module.training = True
    tokens, mask = reached[0] if reached else (None, None)
    if not isinstance(tokens, Tensor):
        raise _refusal(model, "none reach its decoder")
    made = {"decoder_input_ids": tokens}
    if isinstance(mask, Tensor) and mask.shape == tokens.shape and not bool(mask.all()):
        made[_MASK] = mask
    return {name: value.to(batch["labels"].device) for name, value in made.items()}


def _refusal(model: PreTrainedModel, why: str) -> DataError:
    return DataError(
        f"{type(model).__name__} makes no decoder inputs of the labels ({why})",
        where="batches",
        hint="give decoder_input_ids beside the labels",
    )
