"""What the settings of a model say of single heads, and of the head counts of single layers; kept true when heads are removed.

Whisper tells the time of a word by its ``alignment_heads``: pairs [layer, head] of the decoder's cross-attentions. transformers
sizes a cache ahead by ``per_layer_config``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import config_value, original_head_counts
from headprune.anatomy.sites import Anatomy, Site
from headprune.errors import PlanError
from headprune.heads import HeadId

_NAME = "alignment_heads"
_AS_LOADED = "_original_object_hash"
_COUNTS = ("num_attention_heads", "num_key_value_heads")


def named_heads(model: PreTrainedModel, anatomy: Anatomy) -> tuple[HeadId, ...]:
    """Return the heads that the settings of ``model`` name, by their original index."""
    return tuple(
        HeadId(site.id, head)
        for settings in _settings(model)
        for layer, index in getattr(settings, _NAME)
        for site in anatomy.sites
        if site.id.kind == "cross" and site.id.layer == layer
        for head in _shown(site)[index : index + 1]
        if head in site.heads
    )


def named_heads_after(
    model: PreTrainedModel, before: Sequence[Site], after: Sequence[Site]
) -> list[tuple[Any, list[list[int]]]]:
    """Return each settings object that names heads, with the names that hold after the cut; nothing is changed.

    Raises:
        PlanError: No head that is named would be left.
    """
    renamed = []
    for settings in _settings(model):
        old = [list(pair) for pair in getattr(settings, _NAME)]
        new = list(_renamed(old, _cross_attentions(before), _cross_attentions(after)))
        if old and not new:
            raise PlanError(
                f"every head that {_NAME} names would be removed, and words could be timed no more",
                where=f"generation_config.{_NAME}",
                hint="keep one of them (`protect`), or delete that setting to do without the times of words",
            )
        renamed.append((settings, new))
    return renamed


def rename_heads(renamed: Sequence[tuple[Any, list[list[int]]]]) -> None:
    """Let settings name heads as :func:`named_heads_after` returned."""
    for settings, pairs in renamed:
        is_as_loaded = getattr(settings, _AS_LOADED, None) == hash(settings)
        setattr(settings, _NAME, pairs)
        if is_as_loaded:  # else transformers refuses to write them where it deems them unwise
            setattr(settings, _AS_LOADED, hash(settings))


def head_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of generation that name heads, as they are written."""
    settings = getattr(model, "generation_config", None)
    return {_NAME: getattr(settings, _NAME)} if getattr(settings, _NAME, None) else {}


def layer_counts(config: PreTrainedConfig, sites: Sequence[Site]) -> dict[int, dict[str, int]]:
    """Return the head counts of the layers that lost heads; empty where a config can't say so, or needn't.

    Args:
        config: The model's config. It must name the width of a head: where that is what the hidden size divided by the heads
            is, fewer heads would be read as wider ones.
        sites: The model's attentions.
    """
    original = original_head_counts(config)
    stacks = {site.id.stack for site in sites}
    native = all(site.execution_with(site.heads) == "native" for site in sites)
    named = all(isinstance(config_value(config, name), int) for name in ("head_dim", *_COUNTS))
    if len(stacks) != 1 or not native or not named or not hasattr(config, "is_heterogeneous"):
        return {}
    counts = {
        site.id.layer: {
            "num_attention_heads": len(site.slots),
            "num_key_value_heads": site.attribute_value("key_value_heads", site.slots),
        }
        for site in sites
        if site.id.kind == "self"
    }
    return {layer: of_layer for layer, of_layer in counts.items() if of_layer != original}


def settings_by_layer(
    config: PreTrainedConfig, counts: Mapping[int, Mapping[str, int]]
) -> dict[int, dict[str, Any]]:
    """Return what a config says of single layers, with other head counts: Gemma 4's layers differ in other things, too."""
    settings = {
        int(layer): {name: value for name, value in of_layer.items() if name not in _COUNTS}
        for layer, of_layer in (config.to_dict().get("per_layer_config") or {}).items()
    }
    for layer, of_layer in counts.items():
        settings.setdefault(layer, {}).update(of_layer)
    return {layer: of_layer for layer, of_layer in settings.items() if of_layer}


def update_layer_counts(config: Any, sites: Sequence[Site]) -> None:
    """Let a config that tells the counts of single layers tell those that are left."""
    if getattr(config, "is_heterogeneous", False):
        counts = layer_counts(config, sites)
        config.per_layer_config = settings_by_layer(config, counts)
        config.allow_global_per_layer_attribute_access |= bool(counts)


def _settings(model: PreTrainedModel) -> Iterator[Any]:
    for settings in (getattr(model, "generation_config", None), model.config):
        if getattr(settings, _NAME, None):
            yield settings


def _cross_attentions(sites: Sequence[Site]) -> dict[int, Site]:
    return {site.id.layer: site for site in sites if site.id.kind == "cross"}


def _renamed(
    pairs: Sequence[Sequence[int]], before: Mapping[int, Site], after: Mapping[int, Site]
) -> Iterator[list[int]]:
    for layer, index in pairs:
        if layer not in before:
            yield [layer, index]  # that attention can't be cut
            continue
        # An attention that runs with its full width shows all its heads, where they always were.
        old, new = _shown(before[layer]), _shown(after[layer])
        head = old[index] if index < len(old) else None
        if head in after[layer].heads:
            yield [layer, new.index(head)]


def _shown(site: Site) -> tuple[int, ...]:
    """Return the original index of each head in the attention weights."""
    is_native = site.execution_with(site.heads) == "native"
    return site.slots if is_native else tuple(range(site.num_heads))
