"""The weights of output projections: read, written, swapped for the length of a block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy


def can_fit(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether all output projections are there: not where they wait elsewhere until their layer runs (accelerate)."""
    outputs = (model.get_submodule(site.output) for site in anatomy.sites)
    return not any(
        parameter.is_meta for output in outputs for parameter in output.parameters(recurse=False)
    )


def has_bias(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether an output projection has a bias."""
    outputs = (model.get_submodule(site.output) for site in anatomy.sites)
    return any(getattr(output, "bias", None) is not None for output in outputs)


def projection_weights(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Tensor]:
    """Return copies of all parameters of output projections, by name."""
    outputs = dict.fromkeys(site.output for site in anatomy.sites)
    return {
        f"{output}.{name}": parameter.detach().clone()
        for output in outputs
        for name, parameter in model.get_submodule(output).named_parameters(recurse=False)
    }


@torch.no_grad()
def write_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Write parameters into the model, in place."""
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


@contextmanager
def restoring(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
    """Restore, at the end of a block, the output projections as they were."""
    before = projection_weights(model, anatomy)
    try:
        yield
    finally:
        write_weights(model, before)


@contextmanager
def swapped_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model have other parameters for the length of a block."""
    before: dict[str, Any] = {name: model.get_parameter(name).data for name in values}
    try:
        for name, value in values.items():
            model.get_parameter(name).data = value
        yield
    finally:
        for name, data in before.items():
            model.get_parameter(name).data = data
