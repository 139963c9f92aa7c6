"""Biases that a family knows and a model was built without: added as zeros, so that reconstruction has something to change.

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
from headprune.anatomy.exceptions import BIAS_SWITCHES
from headprune.surgery.fit import has_bias


@dataclass(frozen=True)
class AddedBiases:
    """Biases that were added.

    Args:
        switch: The setting of the config that tells of them.
        names: Their names.
        count: How many numbers they are.
    """

    switch: str
    names: tuple[str, ...]
    count: int


def add_zero_biases(model: PreTrainedModel, anatomy: Anatomy) -> AddedBiases | None:
    """Give every output projection a bias of zeros, and whatever else the family has with it; no output changes.

    Args:
        model: The model; changed in place, its config too.
        anatomy: Its anatomy, which must be looked up again afterwards: biases of queries, keys and values are cut, too.

    Returns:
        None where nothing was done: they have one, or the family knows none.
    """
    if has_bias(model, anatomy):
        return None
    for switch in BIAS_SWITCHES:
        names = _biases_with(model, switch)
        if names and {f"{site.output}.bias" for site in anatomy.sites} <= set(names):
            for name in names:
                layer = model.get_submodule(name.removesuffix(".bias"))
                weight: nn.Parameter = layer.weight  # type: ignore[assignment]
                zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
                layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
            setattr(model.config, switch, True)
            count = sum(model.get_parameter(name).numel() for name in names)
            return AddedBiases(switch, names, count)
    return None


def remove_biases(model: PreTrainedModel, added: AddedBiases) -> None:
    """Remove biases that were added."""
    for name in added.names:
        model.get_submodule(name.removesuffix(".bias")).bias = None  # type: ignore[assignment]
    setattr(model.config, added.switch, False)


def _biases_with(model: PreTrainedModel, switch: str) -> tuple[str, ...]:
    """Return the names of the biases that the model would have with a setting; none where more than that would differ."""
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
    present, with_biases = ({name for name, _ in one.named_parameters()} for one in (model, other))
    new = tuple(name for name, _ in other.named_parameters() if name not in present)
    fits = present <= with_biases and all(
        name.endswith(".bias")
        and type(model.get_submodule(name.removesuffix(".bias"))) is nn.Linear
        for name in new
    )
    return new if fits else ()
