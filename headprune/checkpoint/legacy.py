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


def refuse_pruned_parts(config: PreTrainedConfig) -> None:
    """Refuse a model of which transformers v4 pruned a part: the part's own config says so, and nothing reads that.

    Raises:
        ModelError: It did.
    """
    for name in getattr(type(config), "sub_configs", ()):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig) and pruned_heads(part):
            raise ModelError(
                f"transformers v4 pruned the {name} of this {config.model_type} model, and such a model can't be read",
                where=f"config.json ({name}.pruned_heads)",
                hint=f"convert the {name} alone, saved as a model of its own, or prune the whole model anew",
            )


def converted_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """Return the config with which a checkpoint of transformers v4 loads: sizes of every pruned attention, no weights read.

    Args:
        config: A config with ``pruned_heads``.
        kind: The stock class.

    Raises:
        ModelError: The heads it names are not there, or it has several stacks that could be meant.
    """
    with quiet(), torch.device("meta"):
        model = kind._from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)
    anatomy = inspect(model)
    stacks = {site.id.stack for site in anatomy.sites if site.id.kind == "self"}
    if len(stacks) > 1:
        raise ModelError(
            f"config.pruned_heads doesn't say which heads of a {config.model_type} model are meant: "
            f"it has attentions in {', '.join(sorted(stacks))}",
            where="config.json (pruned_heads)",
            hint="prune the whole model anew: headprune prune MODEL --keep 0.7",
        )
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
