"""Biases that a family knows and a model was built without: created as zeros, so that reconstruction has something to move.

Llama, for example, has them where ``attention_bias`` is set, and then a stock model reads them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import quiet
from headprune.surgery.fit import has_bias

_SWITCHES = ("attention_bias", "use_bias", "bias", "qkv_bias")


@dataclass(frozen=True)
class Given:
    """Biases that were created.

    Args:
        switch: The setting of the config that tells of them.
        names: Their names.
        count: How many numbers they are.
    """

    switch: str
    names: tuple[str, ...]
    count: int


def give_biases(model: PreTrainedModel, anatomy: Anatomy) -> Given | None:
    """Give every output projection a bias of zeros, and whatever else the family has with it; no output changes.

    Args:
        model: The model; changed in place, its config too.
        anatomy: Its anatomy, which must be looked up again afterwards: biases of queries, keys and values go with their heads.

    Returns:
        None where nothing was done: they have one, or the family knows none.
    """
    if has_bias(model, anatomy):
        return None
    for switch in _SWITCHES:
        names = _with(model, switch)
        if names and {f"{site.output}.bias" for site in anatomy.sites} <= set(names):
            for name in names:
                layer = model.get_submodule(name.removesuffix(".bias"))
                weight: nn.Parameter = layer.weight  # type: ignore[assignment]
                zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
                layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
            setattr(model.config, switch, True)
            count = sum(model.get_parameter(name).numel() for name in names)
            return Given(switch, names, count)
    return None


def take_back(model: PreTrainedModel, given: Given) -> None:
    """Take biases back that were given."""
    for name in given.names:
        model.get_submodule(name.removesuffix(".bias")).bias = None  # type: ignore[assignment]
    setattr(model.config, given.switch, False)


def _with(model: PreTrainedModel, switch: str) -> tuple[str, ...]:
    """Return the names of the biases that the model would have with a setting; none where it isn't only that."""
    if getattr(model.config, switch, None) is not False:
        return ()
    config = copy.deepcopy(model.config)
    setattr(config, switch, True)
    kind: Any = type(model)
    try:
        with quiet(), torch.device("meta"):
            other = kind._from_config(config)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return ()  # a family may refuse it: then it knows no such bias
    ours, theirs = ({name for name, _ in one.named_parameters()} for one in (model, other))
    new = tuple(name for name, _ in other.named_parameters() if name not in ours)
    fits = ours <= theirs and all(
        name.endswith(".bias")
        and type(model.get_submodule(name.removesuffix(".bias"))) is nn.Linear
        for name in new
    )
    return new if fits else ()
