"""A zoo: a tiny random model of every model type of transformers, from its configuration class alone."""

import contextlib
import dataclasses
import inspect
import logging
import re
import warnings
from functools import cache

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from zoo_overrides import CLASSES, OVERRIDES
from zoo_tables import (
    BY_NAME,
    HEADS,
    OTHER_SPECIAL_TOKEN,
    SPECIAL_TOKENS,
    TOGETHER,
)
from zoo_variants import VARIANTS

from headprune.anatomy.inputs import example_inputs

__all__ = ["NotBuilt", "build", "inputs", "model_types"]

MAX_PARAMETERS = 20_000_000
# Asked for one after the other where a type has no AutoModel.
_PREFERRED = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMultimodalLM",
    "AutoModelForImageTextToText",
    "AutoModelForPreTraining",
)
# Configurations that insist on their own ratios are tried again without these.
_DROPPED = ((), ("head_dim",), ("num_key_value_heads",), ("head_dim", "num_key_value_heads"))


class NotBuilt(Exception):  # noqa: N818 - a state, not a mistake
    """This model type has no tiny model; the message is a short reason."""


def inputs(model, *, rows=2, length=16, seed=0):
    """Return inputs for a model of the zoo; the last row is padded where a mask is accepted."""
    return example_inputs(model, rows=rows, length=length, seed=seed)


def model_types():
    """Return every model type that transformers has a configuration for."""
    return list(CONFIG_MAPPING_NAMES)


def build(name, *, attention="eager", auto="AutoModel", seed=0, **settings):
    """Return a tiny random model of a model type or variant, in eval mode and float32.

    A type without an AutoModel gets the class of its first other auto class. Raises NotBuilt.
    """
    model_type, overrides = VARIANTS.get(name, (name, {}))
    with _quiet():
        made = model_class(model_type, auto)
        config = tiny_config(model_type, **overrides, **settings)
        _refuse_if_too_big(made, config)
        torch.manual_seed(seed)
        model = _made(made, config, attention=attention)
    _draw_weights(model, seed)
    return model.eval()


def tiny_config(model_type, **settings):
    """Return a configuration of about two layers and four heads."""
    config_class = CONFIG_MAPPING[model_type]
    tiny = {**tiny_settings(config_class), **settings}
    error = None
    for dropped in _DROPPED:
        try:
            config = config_class(**{k: v for k, v in tiny.items() if k not in dropped})
        except Exception as caught:  # noqa: BLE001 - every configuration has errors of its own
            error = error or caught
        else:
            _split_positions(config)
            return config
    raise NotBuilt(f"config: {_short(error)}") from error


def _split_positions(config):
    """Give the parts of positions in time, height and width (M-RoPE) sizes that fit small heads."""
    for name in getattr(config, "sub_configs", None) or {}:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            _split_positions(part)
    rope = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in config.ignore_keys_at_rope_validation and "rope_theta" in rope:
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        turned = int(head_dim * rope.get("partial_rotary_factor", 1)) // 2
        third = turned // 3
        rope["mrope_section"] = [third, third, turned - 2 * third]


def tiny_settings(config_class, depth=0):
    """Return settings for a configuration class, its sub-configurations as dicts."""
    fields = _fields(config_class)
    tiny = {}
    for name, default in fields.items():
        value = _by_name(name)
        if name in ("image_size", "patch_size") and isinstance(default, (list, tuple)):
            tiny[name] = [value] * len(default)
        elif isinstance(value, list) or (
            value is not None and _is_number(config_class, name, default)
        ):
            tiny[name] = value
    for needed, values in TOGETHER:
        if fields.keys() >= set(needed):
            tiny |= {name: value for name, value in values.items() if name in fields}
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        tiny["num_key_value_heads"] = HEADS
    if depth < 3:
        tiny |= _tiny_parts(config_class, depth)
    return _merged(tiny, OVERRIDES.get(config_class.model_type, {}))


def _merged(settings, overrides):
    """Return settings with overrides, those of sub-configurations merged."""
    both = {
        name: _merged(settings[name], value)
        for name, value in overrides.items()
        if isinstance(value, dict)
        and isinstance(settings.get(name), dict)
        and value.get("model_type") in (None, settings[name].get("model_type"))
    }
    return {**settings, **overrides, **both}


def _fields(config_class):
    """Return the fields of a configuration class with their defaults."""
    if dataclasses.is_dataclass(config_class):
        return {field.name: field.default for field in dataclasses.fields(config_class)}
    parameters = inspect.signature(config_class.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _is_number(config_class, name, default):
    """Say whether a field is a number, not a list of them."""
    if isinstance(default, (list, tuple)):
        return False
    declared = str(getattr(config_class, "__annotations__", {}).get(name, "int"))
    return "int" in re.sub(r"\[.*?\]", "", declared)


def _by_name(name):
    """Return the tiny value of a field, or None."""
    if name in BY_NAME:
        return BY_NAME[name]
    if name.endswith(("_token_id", "_token_index")) and not name.startswith("forced_"):
        return SPECIAL_TOKENS.get(name.split("_token_")[0], OTHER_SPECIAL_TOKEN)
    return None


def _tiny_parts(config_class, depth):
    """Return settings of the sub-configurations: of the classes a default configuration has."""
    parts = {}
    names = getattr(config_class, "sub_configs", None) or {}
    try:
        default = config_class() if names else None
    except Exception:  # noqa: BLE001 - some have no default
        default = None
    for name, declared in names.items():
        part = getattr(default, name, None)
        part_class = type(part) if isinstance(part, PreTrainedConfig) else declared
        if not isinstance(part_class, type) or not issubclass(part_class, PreTrainedConfig):
            continue
        if part_class is PreTrainedConfig:
            continue
        settings = tiny_settings(part_class, depth + 1)
        parts[name] = {**_peculiar(part, settings), **settings}
        if part_class.model_type:
            parts[name]["model_type"] = part_class.model_type
    return parts


def _peculiar(part, settings):
    """Return the plain settings in which a default sub-configuration differs from its class."""
    if not isinstance(part, PreTrainedConfig):
        return {}
    plain = type(part)()
    return {
        name: getattr(part, name)
        for name in _fields(type(part))
        if name not in settings
        and isinstance(getattr(part, name, None), (bool, str))
        and getattr(part, name) != getattr(plain, name, None)
    }


def model_class(model_type, auto):
    """Return the class that an auto class (or, without an AutoModel, another one) has for a type."""
    if auto == "AutoModel" and model_type in CLASSES:
        return getattr(transformers, CLASSES[model_type])
    asked = _auto_names() if auto == "AutoModel" else [auto]
    for name in asked:
        mapping = getattr(transformers, name)._model_mapping
        found = mapping._model_mapping.get(model_type)
        if found is None:
            continue
        found = found if isinstance(found, str) else found[0]
        known = getattr(transformers, found, None)
        if known is None:
            known = mapping._load_attr_from_module(model_type, found)
        return known
    raise NotBuilt(f"no {auto} class")


@cache
def _auto_names():
    """Return the names of the auto classes, the preferred ones first."""
    others = [
        name
        for name in dir(transformers)
        if name.startswith("AutoModel") and name not in _PREFERRED
    ]
    return [*_PREFERRED, *others]


def _made(model_class, config, **settings):
    """Return a model of a configuration, or say why there is none."""
    try:
        attention = settings.pop("attention", None)
        return model_class._from_config(
            config, attn_implementation=attention, dtype=torch.float32, **settings
        )
    except ImportError as error:
        raise NotBuilt(f"missing dependency: {_short(error)}") from error
    except Exception as error:
        raise NotBuilt(f"model: {_short(error)}") from error


def _refuse_if_too_big(model_class, config):
    """Count the parameters without making them."""
    try:
        with torch.device("meta"):
            model = model_class(type(config).from_dict(config.to_dict()))
    except Exception:  # noqa: BLE001 - some cannot be made there; making it tells why, if it fails
        return
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    total = sum(shape.numel() for shape in shapes.values())
    if total > MAX_PARAMETERS:
        biggest = max(shapes, key=lambda name: shapes[name].numel())
        raise NotBuilt(f"too big: {total // 10**6}M, {biggest} {tuple(shapes[biggest])}")


def _draw_weights(model, seed):
    """Draw all weights anew: what starts at zero or one would hide what it does."""
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for module in model.modules():
            convolution = isinstance(module, torch.nn.modules.conv._ConvNd)
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point() and id(parameter) not in seen:
                    seen.add(id(parameter))
                    parameter.copy_(_drawn(parameter, convolution, generator))


def _drawn(parameter, convolution, generator):
    """Return new values: matrices of their own scale, vectors about what they were."""
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() < 2 or not parameter.numel():
        return torch.nan_to_num(parameter).clamp(-10, 10) + 0.3 * noise
    inputs_summed = parameter.numel() // parameter.shape[0] if convolution else parameter.shape[-1]
    return noise * min(0.4, 1.5 / max(1, inputs_summed) ** 0.5)


def _short(error):
    """Return an error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


@contextlib.contextmanager
def _quiet():
    """Silence what transformers says of odd but lawful configurations."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
