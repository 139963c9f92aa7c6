"""Output projections: their weights, read, written or swapped for a while; what they read, and whose inputs are whose."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.masking import places_of
from headprune.replay.record import Call, map_tensors, replaced, returning, tensors_in
from headprune.replay.resume import CompletedCalls
from headprune.surgery.residual import ResidualSum, first_of_shape, listening


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


class Read(NamedTuple):
    """What there is at an output projection.

    Args:
        z: What it reads.
        stream: The residual stream without its output; None where that isn't known.
        again: Returns the call of its attention with what the projection puts out now, without running the rest of it again;
            None where that isn't known, or would hold attention weights in memory.
    """

    z: Tensor
    stream: Tensor | None
    again: Callable[[], Call] | None


class _ReachedError(Exception):
    """Nothing more needs to run."""


def read(
    model: PreTrainedModel,
    batch: Batch,
    site: Site,
    *,
    total: ResidualSum | None,
    completed: CompletedCalls,
) -> Read:
    """Return what there is at a linear output projection; what is completed isn't run.

    Args:
        model: The model.
        batch: The rows, on its device.
        site: The attention, which runs once a forward.
        total: Where its output is added to the stream, if that is known.
        completed: What has ended before.
    """
    attention, projection = model.get_submodule(site.path), model.get_submodule(site.output)
    weight: Any = projection.weight
    outputs = weight.shape[1 if isinstance(projection, Conv1D) else 0]
    is_inside = projection in set(attention.modules())
    seen: dict[str, Any] = {}

    def see(*, is_last: bool, **values: Any) -> None:
        seen.update(values)
        if is_last:
            raise _ReachedError

    def no_output(z: Tensor) -> Tensor:
        zeros = z.new_zeros(*z.shape[:-1], outputs)
        see(is_last=total is None and not is_inside, z=z, zeros=zeros)
        return zeros

    def ended(_module: nn.Module, _args: Any, output: Any) -> None:
        see(is_last=total is None and is_inside, output=output)

    def look(_module: nn.Module, is_read: bool, value: Any) -> None:
        if total is not None and is_read == total.is_read and "zeros" in seen:
            stream = first_of_shape(value, seen["zeros"].shape)
            if stream is not None:
                see(is_last=True, stream=stream)

    with ExitStack() as stack:
        stack.enter_context(suppress(_ReachedError))
        stack.enter_context(returning(completed))
        stack.enter_context(replaced({projection: no_output}))
        stack.callback(attention.register_forward_hook(ended).remove)
        if total is not None:
            stack.enter_context(listening(total.module, look))
        forward(model, batch.inputs)
    is_known = "output" in seen and _follows(seen["output"], seen["zeros"], is_inside=is_inside)
    again = partial(_call_again, attention, projection if is_inside else None, seen)
    return Read(seen["z"], seen.get("stream"), again if is_known else None)


def _call_again(
    attention: nn.Module, projection: nn.Module | None, seen: Mapping[str, Any]
) -> Call:
    """Return the call of an attention, with what the projection inside it puts out now in the place of zeros."""
    output, zeros = seen["output"], seen["zeros"]
    if projection is not None:
        new = projection(seen["z"])
        output = map_tensors(output, lambda one: new.view(one.shape) if _is(one, zeros) else one)
    return Call(attention, None, output, 0, 0)


def _follows(output: Any, zeros: Tensor, *, is_inside: bool) -> bool:
    """Whether an attention put out what its projection did, or before it ran; and no more numbers than two states have."""
    tensors = list(tensors_in(output))
    same = [one for one in tensors if _is(one, zeros)]
    is_plain = len(same) == 1 and same[0].is_contiguous() and not bool(zeros.any())
    return sum(one.numel() for one in tensors) <= 2 * zeros.numel() and (is_plain or not is_inside)


def _is(one: Tensor, other: Tensor) -> bool:
    is_shared = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return is_shared and one.numel() == other.numel()
