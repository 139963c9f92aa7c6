"""Plausible inputs for any model: what its forward takes, in the sizes its config names. Values are random, with a seed."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

_FIRST_WORD = 20  # lower ids are special tokens of a small copy


def example_inputs(
    model: PreTrainedModel, *, rows: int = 2, length: int = 10, seed: int = 0
) -> dict[str, Tensor]:
    """Return inputs for ``model``: token ids (the last row padded on the right), pixels, audio, or hidden states.

    Dimension 0 of every tensor is the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    takes = inspect.signature(model.forward).parameters
    main = model.main_input_name
    found: dict[str, Tensor] = {}
    if "input_ids" in takes:
        found["input_ids"] = _tokens(config, rows, length, generator)
        if "attention_mask" in takes:
            mask = torch.ones(rows, length, dtype=torch.long)
            mask[-1, length - length // 3 :] = 0
            found["attention_mask"] = mask
        if "bbox" in takes:
            found["bbox"] = torch.randint(0, 8, (rows, length, 4), generator=generator).sort(-1)[0]
    elif "inputs_embeds" in takes and main in ("inputs_embeds", "hidden_states"):
        found["inputs_embeds"] = _noise(rows, length, config.hidden_size, generator=generator)
    if "decoder_input_ids" in takes:
        found["decoder_input_ids"] = _tokens(config, rows, length - 1, generator)
    if "pixel_values" in takes and _wants(takes, "pixel_values", main):
        channels, height, width = _image(config)
        found["pixel_values"] = _noise(rows, channels, height, width, generator=generator)
    if "grid_thw" in takes:
        return _patches(config, rows, generator)
    if main == "input_values":
        found["input_values"] = _noise(rows, _samples(config), generator=generator)
    if main == "input_features":
        found["input_features"] = _features(config, rows, generator)
    return found


def _patches(config: PreTrainedConfig, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return images as towers of the Qwen-VL kind take them: flat patches, and how many each image has each way."""
    patch, frames = config.patch_size, _first(config, ("temporal_patch_size",), 1)
    channels = _first(config, ("in_channels", "num_channels", "in_chans"), 3)
    side = 2 * _first(config, ("spatial_merge_size",), 1)
    return {
        "hidden_states": _noise(
            rows * side * side, channels * frames * patch * patch, generator=generator
        ),
        "grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def _wants(takes: Mapping[str, inspect.Parameter], name: str, main: str) -> bool:
    required = takes[name].default is inspect.Parameter.empty
    return main == name or required or "input_ids" not in takes


def _tokens(config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator) -> Tensor:
    vocabulary = _first(config.get_text_config(), ("vocab_size",), 64)
    low = min(_FIRST_WORD, vocabulary // 2)
    return torch.randint(low, min(vocabulary, 5000), (rows, length), generator=generator)


def _image(config: PreTrainedConfig) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", None) or config
    size = _first(vision, ("image_size", "img_size", "input_size"), 32)
    height, width = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    channels = _first(vision, ("num_channels", "in_channels", "in_chans"), 3)
    return channels, height, width


def _samples(config: PreTrainedConfig) -> int:
    """Return an audio length that leaves some frames after the convolutions."""
    samples = 12
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in zip(reversed(list(kernels)), reversed(list(strides)), strict=False):
        samples = (samples - 1) * stride + kernel
    return max(samples, 400)


def _features(config: PreTrainedConfig, rows: int, generator: torch.Generator) -> Tensor:
    bins = _first(
        config, ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel"), 80
    )
    positions = getattr(config, "max_source_positions", None)
    if positions is None or getattr(config, "model_type", "").startswith("speech_to_text"):
        return _noise(rows, 32, bins, generator=generator)
    return _noise(rows, bins, 2 * positions, generator=generator)


def _first(config: PreTrainedConfig, names: tuple[str, ...], otherwise: Any) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return otherwise


def _noise(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
