"""A tiny random model of the same class, head counts kept: what is true of its structure is true of the real one.

Asking the clone takes seconds whatever the size of the model, and its weights are drawn so that nothing is hidden: real
models have layers that start at zero, and the usual initialisation is so small that heads hardly matter.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from headprune.errors import UnsupportedError

HEAD_DIM = 8
_LAYERS = 2
_VOCABULARY = 64
_FEED_FORWARD = 32
_SIZES = {
    "head_dim": HEAD_DIM,
    "vocab_size": _VOCABULARY,
    "intermediate_size": _FEED_FORWARD,
    "ffn_dim": _FEED_FORWARD,
    "hidden_dim": _FEED_FORWARD,
}
_HEADS = ("num_attention_heads", "num_key_value_heads")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from talking about models that the user doesn't know of."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def pruning_record(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what earlier pruning left in the config (empty for a model never pruned)."""
    record = getattr(config, "headprune", None)
    return dict(record) if record else {}


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the class of transformers behind a model that was loaded from a pruned directory."""
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return kind
    return type(model)


def original_head_counts(config: PreTrainedConfig) -> dict[str, int]:
    """Return the head counts of the unpruned model, by the config's standard names."""
    counts = {name: getattr(config, name, None) for name in _HEADS}
    counts.update(pruning_record(config).get("original", {}))
    return {name: value for name, value in counts.items() if isinstance(value, int)}


def tiny_clone(model: PreTrainedModel) -> PreTrainedModel:
    """Build a tiny random model of ``model``'s class with the head counts it had before any pruning.

    The caller's random state is left alone.

    Raises:
        UnsupportedError: The config is of a kind that isn't understood yet, or no model can be built from its shrunk copy.
    """
    config = model.config
    refuse_unknown_kinds(model)
    kind = stock_class(model)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            clone = kind._from_config(
                _tiny_config(config, kind), dtype=torch.float32, attn_implementation="eager"
            )
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise UnsupportedError(
                f"model type {config.model_type!r} is not supported: no small copy of it could be built ({error})",
                where=f"{kind.__name__} (config.json: model_type)",
                hint="headprune inspect MODEL tells what is supported; a small copy is needed to prove the pruning",
            ) from error
        _draw_weights(clone)
    made: PreTrainedModel = clone.eval()
    return made


def tiny_inputs(clone: PreTrainedModel, *, rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Return token ids for the clone, the last row padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, _VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def refuse_unknown_kinds(model: PreTrainedModel) -> None:
    """Refuse, by name and reason, models that the probe doesn't speak to yet.

    Raises:
        UnsupportedError: The model is quantised, has an encoder and a decoder, several towers, or doesn't read tokens.
    """
    config = model.config
    reason = None
    hint = "models that read tokens in one stack (encoders and decoders) are supported"
    if getattr(config, "quantization_config", None) is not None:
        reason = "its weights are quantised, and packed rows can't be cut"
        hint = "load it dequantised, prune, and quantise the pruned model again"
    elif getattr(config, "is_encoder_decoder", False):
        reason = "it has an encoder and a decoder, which are not supported yet"
    elif getattr(config, "sub_configs", None):
        reason = f"it is made of several models ({', '.join(config.sub_configs)}), which are not supported yet"
    elif model.main_input_name != "input_ids":
        reason = f"it reads {model.main_input_name}, not tokens, which is not supported yet"
    if reason:
        raise UnsupportedError(
            f"model type {config.model_type!r} is not supported: {reason}",
            where=f"{type(model).__name__} (config.json: model_type)",
            hint=hint,
        )


def _tiny_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    settings = config.to_dict()
    for name in (
        "headprune",
        "auto_map",
        "architectures",
        "dtype",
        "model_type",
        "per_layer_config",
    ):
        settings.pop(name, None)
    layers = config.num_hidden_layers
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == layers:  # one entry per layer (layer_types)
            settings[name] = value[:_LAYERS]
        elif name.endswith("_token_id") and isinstance(value, int) and value >= _VOCABULARY:
            settings[name] = 0
    renamed = {old: new for new, old in getattr(type(config), "attribute_map", {}).items()}
    known = {renamed.get(name, name) for name in settings} | set(settings)
    counts = original_head_counts(config)
    wanted = {
        "num_hidden_layers": _LAYERS,
        "hidden_size": counts["num_attention_heads"] * HEAD_DIM,
        **{name: value for name, value in counts.items() if name in known},
        **{
            name: size
            for name, size in _SIZES.items()
            if name in known and _value(config, name) is not None
        },
    }
    attribute_map = getattr(type(config), "attribute_map", {})
    settings.update({attribute_map.get(name, name): value for name, value in wanted.items()})
    config_class = kind.config_class or type(config)
    return config_class(**settings)


def _value(config: PreTrainedConfig, name: str) -> object:
    return getattr(config, name, None)


def _draw_weights(clone: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in clone.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * 0.6 / math.sqrt(max(1, parameter.shape[-1])))
            else:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
