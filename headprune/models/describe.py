"""The config with which a model loads: a stock one where it can say the model's shape, else one that names a small file.

Two ways to load a model:

* ``stock``: every layer has the same number of heads and the family's config can express it. Plain
  ``AutoModel....from_pretrained(directory)`` loads it; no extra file.
* ``remote-code``: ``modeling_headprune.py`` lies beside the weights. ``from_pretrained(directory, trust_remote_code=True)``
  loads it, and so does ``headprune.load(directory)`` without running a file of the directory.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import (
    config_value,
    original_head_counts,
    pruning_record,
    quiet,
    stock_class,
)
from headprune.anatomy.exceptions import SAME_MATHEMATICS
from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import LoadMethod
from headprune.errors import CheckpointError
from headprune.heads import SiteId
from headprune.models.classes import auto_classes
from headprune.surgery import modeling_headprune
from headprune.surgery.head_settings import layer_counts, settings_by_layer
from headprune.surgery.modeling_headprune import unfolded, width_kept

_Shapes = dict[str, torch.Size]

_ABSENT = object()
# Whoever asks a config that tells counts of single layers for those of all is answered.
_GLOBAL_COUNTS = "allow_global_per_layer_attribute_access"


@dataclass(frozen=True)
class Description:
    """A config that builds exactly the tensors of a model, and how the model loads with it."""

    config: PreTrainedConfig
    load_method: LoadMethod


def describe(model: PreTrainedModel, anatomy: Anatomy) -> Description:
    """Find the config with which a model loads; nothing is written.

    Raises:
        CheckpointError: There is none.
    """
    with quiet():
        stock = stock_config(model, anatomy)
        if stock is not None:
            return Description(stock, "stock")
        return Description(remote_config(model, anatomy), "remote-code")


def _shapes(model: PreTrainedModel) -> _Shapes:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def stock_config(model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedConfig | None:
    """Return a stock config that builds exactly the tensors of ``model``, or None.

    Each candidate's model is built without memory, and names and shapes are compared.
    """
    expected = _shapes(model)
    for config, kind in _candidates(model, anatomy):
        try:
            with torch.device("meta"):
                built = kind(config)
        except (ValueError, TypeError, RuntimeError, AttributeError):
            continue
        if _shapes(built) == expected:
            config.architectures = [kind.__name__]
            return config
    return None


def _candidates(
    model: PreTrainedModel, anatomy: Anatomy
) -> Iterator[tuple[PreTrainedConfig, type[PreTrainedModel]]]:
    kind = stock_class(model)
    record = pruning_record(model.config)
    plain = _plain_config(model.config, kind)
    if not record.get("removed"):
        yield plain, kind
        return
    sizes = {(len(site.slots), len(site.groups(site.slots))) for site in anatomy.sites}
    native = all(site.execution_with(site.heads) == "native" for site in anatomy.sites)
    if len(sizes) != 1 or anatomy.refused or not native or not next(iter(sizes))[0]:
        return
    ((heads, groups),) = sizes
    first = anatomy.sites[0]
    changes: dict[str, int | None] = {"num_attention_heads": heads, "head_dim": first.head_dim}
    if config_value(plain, "num_key_value_heads", _ABSENT) is not _ABSENT:
        changes["num_key_value_heads"] = groups if first.num_key_value_heads > 1 else 1
    note = {name: value for name, value in record.items() if name != "sites"}
    yield from _changed(plain, changes, note, kind)
    other = SAME_MATHEMATICS.get(plain.model_type)
    if other is not None:
        name = kind.__name__.replace(plain.model_type.capitalize(), other.capitalize())
        other_kind = getattr(transformers, name, None)
        if other_kind is not None:
            changes["sliding_window"] = None
            yield from _changed(plain, changes, note, other_kind)


def _changed(
    config: PreTrainedConfig,
    changes: dict[str, Any],
    note: dict[str, Any],
    kind: type[PreTrainedModel],
) -> Iterator[tuple[PreTrainedConfig, type[PreTrainedModel]]]:
    settings = {**config.to_dict(), **changes, "headprune": note}
    settings.pop("model_type", None)
    renamed = getattr(type(config), "attribute_map", {})
    settings.update({renamed[name]: settings.pop(name) for name in changes if name in renamed})
    assert kind.config_class is not None  # every stock model class names its config class
    try:
        yield kind.config_class(**settings), kind
    except Exception:  # noqa: BLE001 - config classes refuse with exceptions of their own; the next candidate is tried
        return


def remote_config(model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedConfig:
    """Return the config that makes transformers use ``modeling_headprune.py`` with the sizes of ``model``.

    Raises:
        CheckpointError: Such a config describes other tensors than the model has, or transformers knows no such class.
    """
    kind = stock_class(model)
    config = _plain_config(model.config, kind)
    record = {**pruning_record(model.config), "sites": _sizes(model, anatomy)}
    record.pop("uneven_cache", None)
    uneven = {"uneven_cache": True} if has_uneven_cache(model, anatomy) else {}
    config.headprune = {**record, **uneven}
    assert kind.config_class is not None
    classes = {
        "AutoConfig": kind.config_class.__name__,
        **{name: picked.__name__ for name, picked in auto_classes(kind.config_class).items()},
    }
    config.auto_map = {
        name: f"modeling_headprune.HeadPruned{picked}" for name, picked in classes.items()
    }
    config.architectures = [kind.__name__]
    with_counts = _with_layer_counts(config, anatomy)
    if with_counts is not None and _built_shapes(model, with_counts) == _shapes(model):
        return with_counts
    _refuse_undescribed(model, kind, _built_shapes(model, config) or {})
    return config


def _with_layer_counts(config: PreTrainedConfig, anatomy: Anatomy) -> PreTrainedConfig | None:
    """Return the config with the head counts of single layers in it; None where it can't tell them."""
    counts = layer_counts(config, anatomy.sites)
    if not counts:
        return None
    told = settings_by_layer(config, counts)
    settings = {**config.to_dict(), _GLOBAL_COUNTS: True, "per_layer_config": told}
    try:
        return type(config).from_dict(settings)
    except Exception:  # noqa: BLE001 - config classes refuse as they like
        return None


def _built_shapes(model: PreTrainedModel, config: PreTrainedConfig) -> _Shapes | None:
    """Build a model from a config on the meta device, and return its tensors' shapes; None where it can't be built."""
    try:
        kind = getattr(modeling_headprune, f"HeadPruned{stock_class(model).__name__}")
        with torch.device("meta"):
            return _shapes(kind(copy.deepcopy(config)))
    except Exception:  # noqa: BLE001 - some classes read what differs by layer, and config classes refuse as they like
        return None


def _refuse_undescribed(
    model: PreTrainedModel, kind: type[PreTrainedModel], built: Mapping[str, torch.Size]
) -> None:
    """Refuse a model that has other tensors than its config describes: once written, it could not be loaded."""
    elsewhere = "heads were pruned in a model inside or around it: prune the very one that is saved"
    if not hasattr(transformers, kind.__name__):
        raise CheckpointError(
            f"transformers loads no {kind.__name__} by its name",
            where=type(model).__name__,
            hint="save the model that it is a part of",
        )
    for name, tensor in model.state_dict().items():
        expected = built.get(name, tensor.shape)
        if expected != tensor.shape:
            parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
            is_pruned = any("save_pretrained" in vars(part) for part in parts)
            sizes = [" x ".join(map(str, shape)) for shape in (tensor.shape, expected)]
            raise CheckpointError(
                f"{name} is {sizes[0]} in the model, and its config describes {sizes[1]}",
                where=type(model).__name__,
                hint=elsewhere
                if is_pruned and not pruning_record(model.config).get("removed")
                else "let its config say the sizes of its tensors: num_labels, vocab_size, ...",
            )


def has_uneven_cache(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether some attention has another number of key/value heads than the config gives for all of them."""
    counts = original_head_counts(model.config)
    expected = counts.get("num_key_value_heads", counts.get("num_attention_heads"))
    return any(
        len(site.groups(site.slots)) != expected
        for site in anatomy.sites
        if site.id.kind == "self" and site.execution_with(site.heads) == "native"
    )


def _sizes(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Any]:
    """Return shapes and integers of every pruned site, by paths below the base model."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    removed = {
        SiteId.parse(name.rpartition(".")[0])
        for name in pruning_record(model.config).get("removed", ())
    }
    return {
        _below(prefix, site.path): _size(model, site, prefix)
        for site in anatomy.sites
        if site.id in removed
    }


def _size(model: PreTrainedModel, site: Site, prefix: str) -> dict[str, Any]:
    attributes: dict[str, dict[str, int]] = {}
    for item in site.attributes:
        value = attrgetter(item.name)(model.get_submodule(item.module))
        attributes.setdefault(_below(prefix, item.module), {})[item.name] = value
    linears = sorted({item.parameter.rpartition(".")[0] for item in site.slices})
    owners = [path.rpartition(".") for path in linears]
    widths = [width_kept(model.get_submodule(owner), leaf) for owner, _, leaf in owners]
    spread = {_below(prefix, path): kept for path, kept in zip(linears, widths, strict=True)}
    home = unfolded(model.get_submodule(site.home))
    return {
        "shapes": {
            _below(prefix, item.parameter): list(model.get_parameter(item.parameter).shape)
            for item in site.slices
        },
        "attributes": attributes,
        "spread": {path: kept for path, kept in spread.items() if kept},
        **({"unfolded": {_below(prefix, site.home): home}} if home else {}),
    }


def _below(prefix: str, path: str) -> str:
    """Return a path below the base model; one that lies outside of it starts with a slash."""
    return path.removeprefix(prefix) if path.startswith(prefix) else f"/{path}"


def _plain_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """Return a copy of a config as its stock class, without what an earlier save added."""
    by_layer = settings_by_layer(config, {})
    settings = {**config.to_dict(), "per_layer_config": by_layer}
    for name in ("auto_map", _GLOBAL_COUNTS, *([] if by_layer else ["per_layer_config"])):
        settings.pop(name, None)
    assert kind.config_class is not None
    plain = kind.config_class.from_dict(settings)
    plain.architectures = [kind.__name__]
    return plain
