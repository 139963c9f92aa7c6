"""Weights that a config ties and a file stores apart, with other numbers: loading unties them, and so does looking."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from headprune.checkpoint.shards import stored_tensors
from headprune.errors import ModelError


def untie_as_stored(model: PreTrainedModel, directory: Path) -> None:
    """Give a model without memory the parameters that ``from_pretrained`` would give it where the weights lie in ``directory``.

    Where they don't, or can't be read, the config's word stands.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    try:
        stored = {item.name: item for item in stored_tensors(directory)} if tied else {}
    except ModelError:
        return
    apart = {
        name
        for name, source in tied.items()
        if name in stored
        and source in stored
        and not torch.equal(stored[name].read(), stored[source].read())
    }
    for name in apart:
        home, _, attribute = name.rpartition(".")
        owner = model.get_submodule(home)
        setattr(owner, attribute, nn.Parameter(torch.empty_like(owner.get_parameter(attribute))))
    model.all_tied_weights_keys = {
        name: source for name, source in tied.items() if name not in apart
    }
