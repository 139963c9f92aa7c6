"""Where what an attention puts out is added to the residual stream: asked of the model, not looked up by its family.

The stream without that output is what is read there when the output projection puts out zeros. Before a norm (Llama), inside one
(BERT), of both branches at once (GPT-NeoX), behind a factor (Granite) or one for each channel (DINOv2): it is the first sum after
the projection that grows by what the projection puts out, times numbers. Where there is no such sum (the output is normed first,
as in Gemma 2, or rearranged into windows, as in Swin) the stream isn't known.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, forward
from headprune.heads import SiteId
from headprune.replay.record import block_of, tensors_in

_TOLERANCE = 0.02
"""How much of its size a sum may differ from what was put in: half precision rounds large streams."""
_SIZES = 3
"""So many sizes the positions of a probe have; with fewer positions nothing is known."""
_SMALLEST = 1e-3
"""The smallest factor that is told from rounding: smaller ones are 0."""


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """The sum of the residual stream and what an output projection puts out.

    Args:
        module: Whose first call after the projection reads the sum, or puts it out.
        is_read: Whether it is read.
        scale: The factor of each channel of the projection's output.
    """

    module: nn.Module
    is_read: bool
    scale: Float[Tensor, " hidden"]


@dataclass(frozen=True, eq=False)
class _State:
    module: nn.Module
    is_read: bool
    value: Tensor


@torch.no_grad()
def residual_sums(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch
) -> dict[SiteId, ResidualSum]:
    """Return where the output of each attention is added to the stream, of those attentions of which that is known.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy.
        batch: A few rows, on the model's device; each block runs twice on them for each of its attentions.
    """
    block_by_site = {site.id: block_of(model, site) for site in anatomy.sites}
    calls = _single_calls(model, batch, [one for one in block_by_site.values() if one is not None])
    found: dict[SiteId, ResidualSum] = {}
    for site in anatomy.sites:
        block = block_by_site[site.id]
        if block is not None and block in calls:
            args, kwargs = calls[block]
            one = sum_after(model.get_submodule(site.output), block, args, kwargs)
            if one is not None:
                found[site.id] = one
    return found


def _single_calls(
    model: PreTrainedModel, batch: Batch, blocks: list[nn.Module]
) -> dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return how blocks are called, of those that are called once a forward."""
    times: Counter[nn.Module] = Counter()
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        times[module] += 1
        # Nothing is looked up in a cache, or added to one, when the block runs again.
        calls[module] = (args, {k: None if isinstance(v, Cache) else v for k, v in kwargs.items()})

    handles = [
        block.register_forward_pre_hook(note, with_kwargs=True) for block in dict.fromkeys(blocks)
    ]
    try:
        forward(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {block: call for block, call in calls.items() if times[block] == 1}


def sum_after(
    projection: nn.Module, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ResidualSum | None:
    """Return the first state of a block that grows by a projection's output, and isn't that output alone."""

    def states(put_out: Callable[[Tensor], Tensor]) -> list[_State]:
        return _states_after(projection, block, put_out, lambda: block(*args, **kwargs))

    without = states(torch.zeros_like)
    if not without:
        return None
    generator = torch.Generator().manual_seed(0)
    size = max(float(state.value.float().square().mean().sqrt()) for state in without) or 1.0
    probe = torch.randn(without[0].value.shape, generator=generator).flatten(0, -2) * size
    # Positions of different sizes: a norm would make them alike.
    probe *= 1 + torch.arange(len(probe))[:, None] % _SIZES
    probe = probe.reshape(without[0].value.shape)
    with_probe = states(lambda output: probe.to(output))
    seen: set[tuple[nn.Module, bool]] = set()
    for before, after in zip(without, with_probe, strict=False):
        if (before.module, before.is_read) in seen or before.module is not after.module:
            continue
        seen.add((before.module, before.is_read))
        scale = scale_of(before.value, after.value, probe)
        if scale is not None and bool(scale.any()) and bool(before.value.any()):
            return ResidualSum(before.module, before.is_read, scale)
    return None


def scale_of(
    before: Float[Tensor, "*positions hidden"],
    after: Float[Tensor, "*positions hidden"],
    probe: Float[Tensor, "*positions hidden"],
) -> Float[Tensor, " hidden"] | None:
    """Return ``c`` where ``after = before + c probe``; None where it isn't that."""
    change, probe = (one.flatten(0, -2) for one in ((after.float() - before.float()).cpu(), probe))
    scale = (change * probe).sum(0) / probe.square().sum(0)
    expected = scale * probe
    is_close = float((change - expected).norm()) <= _TOLERANCE * float(expected.norm())
    if not is_close or len(probe) < _SIZES:
        return None
    scale = (
        scale.mean().expand_as(scale)
        if float(scale.std()) < _TOLERANCE * abs(float(scale.mean()))
        else scale
    )
    return scale.where(scale.abs() > _SMALLEST, 0.0)


def _states_after(
    projection: nn.Module,
    block: nn.Module,
    put_out: Callable[[Tensor], Tensor],
    run: Callable[[], Any],
) -> list[_State]:
    """Return the states of the shape of a projection's output that modules of a block read and put out after it."""
    shapes: list[torch.Size] = []
    states: list[_State] = []

    def change(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shapes.append(output.shape)
        return put_out(output)

    def note(module: nn.Module, is_read: bool, value: Any) -> None:
        if shapes and module is not projection:
            state = first_of_shape(value, shapes[0])
            if state is not None:
                states.append(_State(module, is_read, state.clone()))

    handle = projection.register_forward_hook(change)
    try:
        with listening(block, note, inside=True):
            run()
    finally:
        handle.remove()
    return states


def first_of_shape(value: Any, shape: torch.Size) -> Tensor | None:
    """Return the first state of a nest, in that shape: some models flatten rows (OPT)."""
    for one in tensors_in(value):
        if (
            one.is_floating_point()
            and one.shape[-1:] == shape[-1:]
            and one.numel() == shape.numel()
        ):
            return one.reshape(shape)
    return None


@contextmanager
def listening(
    module: nn.Module, note: Callable[[nn.Module, bool, Any], None], *, inside: bool = False
) -> Iterator[None]:
    """Call ``note(module, is_read, value)`` for what a module reads and puts out, and with ``inside`` for all modules in it."""

    def before(one: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(one, True, (args, kwargs))

    def after(one: nn.Module, _args: Any, output: Any) -> None:
        note(one, False, output)

    handles = []
    for one in module.modules() if inside else (module,):
        handles.append(one.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(one.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
