"""Write a pruned model so that it loads: as a stock model where a stock config can say its shape, else with one small file.

The two routes:

* ``stock``: every layer has the same number of heads and the family's config can express it. Plain
  ``AutoModel....from_pretrained(directory)`` loads it; no extra file.
* ``remote-code``: ``modeling_headprune.py`` lies beside the weights. ``from_pretrained(directory, trust_remote_code=True)``
  loads it, and so does ``headprune.load(directory)`` without running a file of the directory.
"""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.anatomy.clone import (
    config_value,
    original_head_counts,
    pruning_record,
    quiet,
    stock_class,
)
from headprune.anatomy.exceptions import SAME_MATHEMATICS
from headprune.heads import SiteId
from headprune.models.classes import auto_classes
from headprune.models.config_file import write_config
from headprune.models.side_files import (
    change_settings,
    copy_side_files,
    drop_foreign_code,
    write_tokenizer,
)
from headprune.models.writing import refuse_undescribed, writing
from headprune.surgery import head_settings, layer_counts, modeling_headprune
from headprune.surgery.modeling_headprune import unfolded, width_kept

LoadMethod = Literal["stock", "remote-code"]

_ABSENT = object()
# Whoever asks a config that tells counts of single layers for those of all is answered.
_GLOBAL_COUNTS = "allow_global_per_layer_attribute_access"
# As transformers has it.
MAX_SHARD_SIZE = "50GB"


def write_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    anatomy: Anatomy,
    tokenizer: Any = None,
    source: Path | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> LoadMethod:
    """Write weights, config, tokenizer and what else a load needs into an existing directory.

    Args:
        model: The model, pruned or not.
        directory: Where to.
        anatomy: The model's anatomy as it is now.
        tokenizer: The tokenizer; None stands for the source's own.
        source: The directory of the model that it was made from: what made that one work comes along.
        max_shard_size: Weights larger than this are split over several files.

    Raises:
        CheckpointError: A write failed: the disk is full, say; or transformers can't save such a model.
    """
    description = described(model, anatomy)
    with quiet(), writing(directory, "the model"):
        # The class's own: that of a pruned model ends here.
        type(model).save_pretrained(model, directory, max_shard_size=max_shard_size)
    return write_description(
        model, directory, description=description, tokenizer=tokenizer, source=source
    )


def write_description(
    model: PreTrainedModel,
    directory: Path,
    *,
    description: "Description",
    tokenizer: Any = None,
    source: Path | None = None,
) -> LoadMethod:
    """Write all that a load needs but the weights; names and shapes of ``model`` are enough."""
    if source is not None:
        copy_side_files(source, directory)
    write_tokenizer(tokenizer, directory, source=source)
    write_described(model, directory, description)
    return description.route


@dataclass(frozen=True)
class Description:
    """A config that builds exactly the tensors of a model, and how it does."""

    config: PreTrainedConfig
    route: LoadMethod


def described(model: PreTrainedModel, anatomy: Anatomy) -> Description:
    """Find the config with which a model loads; nothing is written.

    Raises:
        CheckpointError: There is none.
    """
    with quiet():
        stock = stock_config(model, anatomy)
        if stock is not None:
            return Description(stock, "stock")
        config = remote_config(model, anatomy)
        refuse_undescribed(model, stock_class(model), _shapes(model, config))
    return Description(config, "remote-code")


def _shapes(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, torch.Size] | None:
    """Return what the class that loads a model builds from a config, without memory; None where it builds nothing so."""
    try:
        kind = getattr(modeling_headprune, f"HeadPruned{stock_class(model).__name__}")
        with torch.device("meta"):
            built = kind(copy.deepcopy(config))
    except Exception:  # noqa: BLE001 - some classes read what differs by layer, and config classes refuse as they like
        return None
    return {name: tensor.shape for name, tensor in built.state_dict().items()}


def write_described(model: PreTrainedModel, directory: Path, description: Description) -> None:
    """Write the config, the code that it names, and the indices of heads that settings of generation name."""
    config = description.config
    config.dtype = model.config.dtype  # as save_pretrained found it
    with quiet():
        write_config(config, directory)
    code = directory / "modeling_headprune.py"
    if description.route == "remote-code":
        shutil.copyfile(str(modeling_headprune.__file__), code)
    else:
        code.unlink(missing_ok=True)
    change_settings(directory / "generation_config.json", head_settings(model))
    drop_foreign_code(directory)


def stock_config(model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedConfig | None:
    """Return a stock config that builds exactly the tensors of ``model``, or None.

    Found by trying: the candidate's model is built without memory, and names and shapes are compared.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for config, kind in _candidates(model, anatomy):
        try:
            with torch.device("meta"):
                built = kind(config)
        except (ValueError, TypeError, RuntimeError, AttributeError):
            continue
        if {name: tensor.shape for name, tensor in built.state_dict().items()} == wanted:
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
        name = kind.__name__.replace(_camel(plain.model_type), _camel(other))
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
    """Return the config that makes transformers use ``modeling_headprune.py`` with the sizes of ``model``."""
    kind = stock_class(model)
    config = _plain_config(model.config, kind)
    record = {**pruning_record(model.config), "sites": _sizes(model, anatomy)}
    record.pop("uneven_cache", None)
    uneven = {"uneven_cache": True} if has_uneven_cache(model, anatomy) else {}
    config.headprune = {**record, **uneven}
    assert kind.config_class is not None
    classes = {
        "AutoConfig": kind.config_class.__name__,
        **{name: made.__name__ for name, made in auto_classes(kind.config_class).items()},
    }
    config.auto_map = {
        name: f"modeling_headprune.HeadPruned{made}" for name, made in classes.items()
    }
    config.architectures = [kind.__name__]
    return _with_layer_counts(config, model, anatomy)


def _with_layer_counts(
    config: PreTrainedConfig, model: PreTrainedModel, anatomy: Anatomy
) -> PreTrainedConfig:
    """Let the config tell the counts of single layers, too, where the model can be built from one that does."""
    counts = layer_counts(config, anatomy.sites)
    if not counts:
        return config
    settings = {**config.to_dict(), _GLOBAL_COUNTS: True, "per_layer_config": counts}
    try:
        told = type(config).from_dict(settings)
    except Exception:  # noqa: BLE001 - config classes refuse as they like
        return config
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return told if _shapes(model, told) == shapes else config


def has_uneven_cache(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether some attention keeps another number of key/value heads than the config says of all."""
    said = original_head_counts(model.config)
    expected = said.get("num_key_value_heads", said.get("num_attention_heads"))
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
    settings = config.to_dict()
    for name in ("auto_map", "per_layer_config", _GLOBAL_COUNTS):
        settings.pop(name, None)
    assert kind.config_class is not None
    plain = kind.config_class.from_dict(settings)
    plain.architectures = [kind.__name__]
    return plain


def _camel(model_type: str) -> str:
    return model_type.capitalize()
