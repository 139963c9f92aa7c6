"""Checkpoints that transformers v4 pruned: ``config.pruned_heads`` says which heads its ``prune_heads`` took.

transformers v5 reads that setting no longer, and refuses the small weights. Here it becomes our record.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.checkpoint.save import remote_config
from headprune.errors import ModelError
from headprune.heads import HeadId
from headprune.inspection import inspect
from headprune.surgery import cut


def pruned_heads(config: PreTrainedConfig) -> dict[int, tuple[int, ...]]:
    """Return what transformers v4 removed, by layer (empty for any other model)."""
    found: Any = getattr(config, "pruned_heads", None)
    if not isinstance(found, Mapping) or hasattr(config, "headprune"):
        return {}
    return {int(layer): tuple(sorted(map(int, heads))) for layer, heads in found.items() if heads}


def converted_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """Return the config with which a checkpoint of transformers v4 loads: sizes of every pruned attention, no weights read.

    Args:
        config: A config with ``pruned_heads``.
        kind: The stock class.

    Raises:
        ModelError: The heads it names are not there.
    """
    with quiet(), torch.device("meta"):
        model = kind._from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)
    anatomy = inspect(model)
    layers = {site.id.layer: site.id for site in anatomy.sites if site.id.kind == "self"}
    named = pruned_heads(config)
    removed = {
        HeadId(layers[layer], head)
        for layer, heads in named.items()
        if layer in layers
        for head in heads
    }
    missing = removed - set(anatomy.heads)
    if missing or len(removed) != sum(map(len, named.values())):
        raise ModelError(
            f"config.pruned_heads names heads that a {config.model_type} model of this size doesn't have",
            where="config.json (pruned_heads)",
            hint="check that config.json belongs to the weights",
        )
    made = remote_config(model, cut(model, anatomy, remove=removed))
    made.pruned_heads = {}
    return made
