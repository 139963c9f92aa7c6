"""The last block on those positions alone that the loss reads: a classifier's first token, or its last.

Nothing mixes positions after the last attention, so the rest of that block is needed for a few positions only. Which those are is
asked of the loss: where it has no gradient, and doesn't move whatever stands there, it reads nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Site
from headprune.batch import Batch, Loss, PositionLoss, forward, per_example
from headprune.replay.recording import (
    Call,
    Recording,
    SiteCall,
    block_of,
    read_by,
    replaced,
    returning,
)
from headprune.replay.rows import map_tensors, repeat, tensors_in

# Of all positions: with more of them there is little to save.
_LARGEST_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Tail:
    """The last block, the attention in it, and the positions of its output that are needed."""

    block: Call
    site: Site
    here: SiteCall
    positions: Int[Tensor, " needed"]


def find_tail(
    model: PreTrainedModel, batch: Batch, loss: Loss, recording: Recording, *, last: Site
) -> Tail | None:
    """Return the part of the last block that isn't needed in full, or None where all of it is.

    Args:
        model: The model.
        batch: The recorded batch.
        loss: What reads the positions.
        recording: What was recorded of the batch.
        last: The attention that ran last.
    """
    here = recording.sites.get(last.id)
    block = _block(model, recording, last, here)
    if here is None or block is None or isinstance(loss, PositionLoss):
        return None
    hidden = next(tensors_in(block.output), None)
    if hidden is None or hidden.dim() != 3 or hidden.shape[0] != batch.num_rows:
        return None
    read = _positions_read(model, batch, loss, recording, block, hidden)
    if not 0 < len(read) <= _LARGEST_SHARE * hidden.shape[1]:
        return None
    return Tail(block, last, here, read)


def _block(
    model: PreTrainedModel, recording: Recording, site: Site, here: SiteCall | None
) -> Call | None:
    """Return the call of the block that the attention lies in, if it ran once and nothing recorded ran after it."""
    module = block_of(model, site)
    calls = [call for call in recording.calls if call.module is module]
    inside = here is not None and len(calls) == 1 and _holds(calls[0], here.projection)
    return calls[0] if inside else None


def _holds(outer: Call, inner: Call) -> bool:
    return outer.began < inner.began and inner.ended < outer.ended


def _positions_read(
    model: PreTrainedModel,
    batch: Batch,
    loss: Loss,
    recording: Recording,
    block: Call,
    hidden: Tensor,
) -> Tensor:
    with torch.enable_grad():
        leaf = hidden.detach().clone().requires_grad_()
        values = _losses_after(model, batch, loss, recording, block, hidden, leaf)
        if not values.requires_grad:
            return torch.arange(hidden.shape[1])
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return torch.nonzero(gradient.ne(0).any(dim=2).any(dim=0)).flatten()


def reads_nothing_else(
    model: PreTrainedModel, batch: Batch, loss: Loss, recording: Recording, tail: Tail
) -> bool:
    """Whether the loss stays the same, to the bit, with other numbers in the positions that aren't needed."""
    hidden = next(tensors_in(tail.block.output))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(hidden.shape, generator=generator).to(hidden) * (10 * hidden.std() + 1)
    noise[:, tail.positions] = 0
    # Both ways: a loss with a margin moves in one direction only.
    return all(
        torch.equal(
            _losses_after(
                model, batch, loss, recording, tail.block, hidden, hidden + sign * noise
            ).float(),
            recording.losses,
        )
        for sign in (1, -1)
    )


def _losses_after(
    model: PreTrainedModel,
    batch: Batch,
    loss: Loss,
    recording: Recording,
    block: Call,
    hidden: Tensor,
    instead: Tensor,
) -> Tensor:
    """Return the losses with another output of the last block."""
    before = recording.done(before=block.began)
    output = map_tensors(block.output, lambda tensor: instead if tensor is hidden else tensor)
    with returning(before), replaced({block.module: lambda *_args, **_kwargs: output}):
        return per_example(loss, forward(model, batch.inputs), batch)


@contextmanager
def narrowed(tail: Tail | None, *, copies: int, rows: int, computed: bool) -> Iterator[None]:
    """Run the last block on the needed positions alone; what it puts out elsewhere is what was recorded.

    Args:
        tail: The last block; None leaves it as it is.
        copies: How many masks are stacked.
        rows: Rows of the recorded batch.
        computed: Whether the output projection's forward is replaced by what it puts out.
    """
    if tail is None:
        yield
        return
    forwards = {tail.block.module: _narrow(tail, copies=copies, rows=rows, computed=computed)}
    with replaced(forwards):
        yield


def _narrow(tail: Tail, *, copies: int, rows: int, computed: bool) -> Callable[..., Any]:
    block, projection = tail.block.module, tail.here.projection.module
    own, project = block.forward, projection.forward
    positions = tail.positions

    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if computed:
            projected = projection.forward(None)[:, positions]
        else:
            z = read_by(projection, lambda: own(hidden, *args, **kwargs))
            projected = project(z[:, positions])
        with replaced(_forwards(tail, projected, copies=copies, rows=rows)):
            narrow = own(hidden[:, positions], *args, **kwargs)
        found = tensors_in(narrow)
        return map_tensors(tail.block.output, lambda tensor: _placed(tensor, next(found)))

    def _placed(recorded: Tensor, narrow: Tensor) -> Tensor:
        full: Tensor = repeat(recorded, copies=copies, rows=rows)
        if full.dim() != narrow.dim() or narrow.shape[1] != len(positions):
            return narrow
        return full.index_copy(1, positions, narrow.to(full.dtype))

    return run


def _forwards(
    tail: Tail, projected: Tensor, *, copies: int, rows: int
) -> Mapping[nn.Module, Callable[..., Any]]:
    """Return forwards that put out what the last attention puts out on the needed positions."""
    whole = tail.here.projection.output
    length = whole.shape[1]

    def few(tensor: Tensor) -> Tensor:
        if tensor.numel() == whole.numel() and tensor.data_ptr() == whole.data_ptr():
            return projected
        if tensor.dim() == 3 and tensor.shape[:2] == (rows, length):
            tensor = tensor[:, tail.positions]
        repeated: Tensor = repeat(tensor, copies=copies, rows=rows)
        return repeated

    attended = map_tensors(tail.here.attention.output, few)
    return {
        tail.here.projection.module: lambda *_args, **_kwargs: projected,
        tail.here.attention.module: lambda *_args, **_kwargs: attended,
    }
