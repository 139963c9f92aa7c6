"""A tiny random model of the same class, head counts kept: what is true of its structure is true of the real one.

Asking the clone takes seconds whatever the size of the model, and its weights are drawn so that nothing is hidden: real
models have layers that start at zero, and the usual initialisation is so small that heads hardly matter.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from headprune.anatomy.exceptions import SMALL_CONFIGS
from headprune.anatomy.shrink import shrunk
from headprune.errors import UnsupportedError, first_line, package_error

# A clone larger than this would take more than the second and the memory that looking is worth.
_MOST_PARAMETERS = 120_000_000
_MOST_BYTES_OF_TABLES = 2_000_000_000
_HEADS = ("num_attention_heads", "num_key_value_heads")


class Size(NamedTuple):
    """How far a config is shrunk: layers left (None: all), and whether widths are."""

    layers: int | None
    widths: bool


# The first that shows all attentions of the real model is taken: layers may differ (sparse, linear, shared ones).
SIZES = (Size(2, True), Size(6, True), Size(2, False), Size(None, True), Size(None, False))


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
    """Return the class of transformers behind a model that was loaded from a pruned directory.

    A class that came from a model's own directory stands for itself, whatever it is derived from.
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models.") or is_own_code(kind):
            return kind
    return type(model)


def varies_by_layer(config: Any, name: str) -> bool:
    """Whether a setting has no one value for all layers: then reading it raises."""
    try:
        getattr(config, name, None)
    except RuntimeError:
        return True
    return False


def config_value(config: Any, name: str, default: Any = None) -> Any:
    """Return a setting, or ``default`` where there is none, or none that holds for all layers."""
    return default if varies_by_layer(config, name) else getattr(config, name, default)


def is_own_code(kind: type) -> bool:
    """Whether a class came from a model's directory (``trust_remote_code=True``) and isn't ours."""
    ours = kind.__module__.endswith(".modeling_headprune") and kind.__name__.startswith(
        "HeadPruned"
    )
    return kind.__module__.startswith("transformers_modules.") and not ours


def original_head_counts(config: PreTrainedConfig) -> dict[str, int]:
    """Return the head counts of the unpruned model, by the config's standard names."""
    counts = {name: config_value(config, name) for name in _HEADS}
    counts.update(pruning_record(config).get("original", {}))
    return {name: value for name, value in counts.items() if isinstance(value, int)}


def tiny_clone(model: PreTrainedModel, *, size: Size) -> PreTrainedModel:
    """Build a small random model of ``model``'s class with the head counts it had before any pruning.

    The caller's random state is left alone.

    Raises:
        UnsupportedError: No model can be built from the shrunk config, or it would be too large.
    """
    kind = stock_class(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            config = _small_config(model.config, kind, size)
            _refuse_large(kind, config)
            with torch.device("cpu"):
                clone = kind._from_config(config, dtype=torch.float32, attn_implementation="eager")
        except Exception as error:  # config and model classes raise whatever they like
            why = first_line(error)
            what, where = f"a small copy of a {kind.__name__}", "config.json (model_type)"
            raise package_error(error, what=what, where=where) or UnsupportedError(
                f"model type {model.config.model_type!r} is not supported: no small copy of it could be built ({why})",
                where=f"{kind.__name__} (config.json: model_type)",
                hint="headprune inspect MODEL tells what is supported; a small copy is needed to prove the pruning",
            ) from error
        _draw_weights(clone)
    made: PreTrainedModel = clone.eval()
    return made


def _refuse_large(kind: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        empty = kind(copy.deepcopy(config))
    numbers = sum(p.numel() for p in empty.parameters())
    if numbers > _MOST_PARAMETERS:
        raise ValueError(f"it would have {numbers:,} parameters")
    tables = sum(buffer.nbytes for buffer in empty.buffers())  # of positions by positions, say
    if tables > _MOST_BYTES_OF_TABLES:
        raise ValueError(f"its tables would take {tables / 1e9:,.1f} GB")


def refuse_quantised(model: PreTrainedModel) -> None:
    """Refuse packed weights.

    Raises:
        UnsupportedError: The model is quantised.
    """
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError(
            f"model type {config.model_type!r} is not supported: its weights are quantised, and packed rows can't be cut",
            where=f"{type(model).__name__} (config.json: quantization_config)",
            hint="load it dequantised, prune, and quantise the pruned model again",
        )


def refuse_uneven(model: PreTrainedModel) -> None:
    """Refuse a model that never had one number of heads in all layers: its small copy would have it, and show other rows.

    Raises:
        UnsupportedError: Its config has another number of heads, or of key/value heads, for some layers.
    """
    config = model.config.get_text_config()
    original = pruning_record(model.config).get("original", {})
    uneven = [name for name in _HEADS if name not in original and varies_by_layer(config, name)]
    if uneven:
        raise UnsupportedError(
            f"model type {config.model_type!r} is not supported where layers differ in {uneven[0]}",
            where=f"{type(model).__name__} (config.json: {uneven[0]}, layer by layer)",
            hint="choose a model of this type whose layers all have the same number of heads",
        )


def _small_config(
    config: PreTrainedConfig, kind: type[PreTrainedModel], size: Size
) -> PreTrainedConfig:
    settings = {**config.to_dict(), **original_head_counts(config)}
    attribute_map = getattr(type(config), "attribute_map", {})
    for name in original_head_counts(config):
        if name in attribute_map:
            settings[attribute_map[name]] = settings.pop(name)
    for name in (
        "headprune",
        "auto_map",
        "architectures",
        "dtype",
        "model_type",
        "per_layer_config",
        "allow_global_per_layer_attribute_access",
    ):
        settings.pop(name, None)
    small = shrunk(settings, layers=size.layers, widths=size.widths)
    if size.layers is not None:
        small.update(SMALL_CONFIGS.get(config.model_type, {}))
    config_class = kind.config_class or type(config)
    made: PreTrainedConfig = config_class(**small)
    return made


def _draw_weights(clone: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in clone.named_parameters():
            if not parameter.is_floating_point():
                continue
            parameter.requires_grad_(True)  # some classes freeze parts of themselves
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * 0.6 / math.sqrt(max(1, parameter.shape[-1])))
            else:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
