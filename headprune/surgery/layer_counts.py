"""The head counts of single layers, in the form that transformers has for them: what sizes a cache ahead reads them."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from headprune.anatomy import Site
from headprune.anatomy.clone import original_head_counts

_COUNTS = ("num_attention_heads", "num_key_value_heads")


def layer_counts(config: PreTrainedConfig, sites: Sequence[Site]) -> dict[int, dict[str, int]]:
    """Return the counts of the layers that lost heads; empty where a config can't say so, or needn't.

    Args:
        config: The model's config. It must name the width of a head: where that is what the hidden size divided by the heads
            is, fewer heads would be read as wider ones.
        sites: The model's attentions.
    """
    whole = original_head_counts(config)
    stacks = {site.id.stack for site in sites}
    native = all(site.execution_with(site.heads) == "native" for site in sites)
    named = all(isinstance(getattr(config, name, None), int) for name in ("head_dim", *_COUNTS))
    if len(stacks) != 1 or not native or not named or not hasattr(config, "is_heterogeneous"):
        return {}
    found = {
        site.id.layer: {
            "num_attention_heads": len(site.slots),
            "num_key_value_heads": site.attribute_value("key_value_heads", site.slots),
        }
        for site in sites
        if site.id.kind == "self"
    }
    return {layer: counts for layer, counts in found.items() if counts != whole}


def update_layer_counts(config: Any, sites: Sequence[Site]) -> None:
    """Let a config that tells the counts of single layers tell those that are left."""
    if getattr(config, "is_heterogeneous", False):
        config.per_layer_config = layer_counts(config, sites)
