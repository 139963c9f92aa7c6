"""Output projections: their weights, read, written, swapped for the length of a block; and which of their inputs are whose."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site
from headprune.masking import places_of


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


def is_linear(model: PreTrainedModel, site: Site) -> bool:
    """Whether an attention puts out a product of what its heads do, and no more."""
    projection = model.get_submodule(site.output)
    plain = type(projection) in (nn.Linear, Conv1D) and site.called == "module"
    return plain and site.gate == site.output and bool(site.heads)


def columns_of(site: Site, kept: Tensor, *, width: int) -> Tensor:
    """Return which of the ``width`` inputs of the output projection belong to heads that are kept."""
    slots = places_of(site, width // site.head_dim)
    index = torch.arange(len(site.heads)) if slots is None else torch.tensor(slots)
    starts = index[kept] * site.head_dim
    return (starts[:, None] + torch.arange(site.head_dim)).flatten()


def of_all_heads(gram: Tensor, kept: Tensor, head_dim: int) -> Tensor:
    """Return sums over the outputs of kept heads, and 1, as sums over those of all heads: the others put out zeros."""
    own = torch.cat([kept.repeat_interleave(head_dim), kept.new_ones(1)]).nonzero().flatten()
    own = own.to(gram.device)
    whole = gram.new_zeros(len(kept) * head_dim + 1, len(kept) * head_dim + 1)
    whole[own[:, None], own] = gram
    return whole


def at_least_single(tensor: Tensor) -> Tensor:
    """Return it in single precision, or in its own where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
