"""``losses(masks)``: the one primitive. Leave-one-out, curves, greedy steps and random subsets are all lists of masks.

A head can't change the layers before it. So each batch runs once as it is, the outputs of all blocks are recorded, and a mask
that first differs from all-ones in block ``l`` re-runs only the blocks from ``l`` on: the earlier ones return their recording,
and the model's own forward does the rest. Masks that start at the same block are stacked on the batch axis.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward, per_example
from headprune.masking import gated


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    masks: Float[Tensor, "masks heads"],
    tokens_per_forward: int = 4096,
    track: Callable[[Sequence[Batch], str], Iterable[Batch]] | None = None,
) -> Float[Tensor, "masks examples"]:
    """Return the loss of every example under every mask.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy; columns of ``masks`` are ``anatomy.heads``, 1 keeps and 0 silences.
        batches: The data. Column ``i`` of the result is the example whose index is ``i``.
        loss: Maps the model's outputs for a batch to one loss per example.
        masks: The masks, in any order.
        tokens_per_forward: Masks are stacked until a forward has about this many tokens.
        track: Wraps the iteration over batches, for a progress bar.

    Returns:
        fp32 losses on the CPU.
    """
    starts = _first_difference(model, anatomy, masks)
    device = next(model.parameters()).device
    result = torch.empty(masks.shape[0], sum(batch.num_examples for batch in batches))
    blocks = _blocks(model, anatomy)
    for batch in track(batches, "losses") if track else batches:
        moved = batch.to(device)
        recording = _record(model, blocks, moved)
        base = per_example(loss, recording.outputs, moved).float().cpu()
        exact = _replays_exactly(model, recording, moved, loss, base)
        for start, members in starts.items():
            if start is None:
                result[members[:, None], batch.indices] = base
                continue
            per_forward = max(1, tokens_per_forward // moved.num_tokens)
            for chunk in members.split(per_forward):
                values = _run_masks(
                    model,
                    anatomy,
                    moved,
                    loss,
                    masks=masks[chunk].to(device),
                    recording=recording if exact else None,
                    skip=start,
                )
                result[chunk[:, None], batch.indices] = values.float().cpu()
    return result


@dataclass(frozen=True, eq=False)
class _Recording:
    blocks: tuple[nn.Module, ...]
    calls: tuple[tuple[nn.Module, Any], ...]
    outputs: Any


def _blocks(model: PreTrainedModel, anatomy: Anatomy) -> tuple[nn.Module, ...]:
    """Return the transformer blocks: for each site the outermost element of a ModuleList on its path."""
    found: dict[nn.Module, None] = {}
    for site in anatomy.sites:
        block = _block_of(model, site)
        if block is not None:
            found[block] = None
    return tuple(found)


def _block_of(model: PreTrainedModel, site: Site) -> nn.Module | None:
    module: nn.Module = model
    for part in site.path.split("."):
        parent, module = module, module.get_submodule(part)
        if isinstance(parent, nn.ModuleList):
            return module
    return None


def _first_difference(
    model: PreTrainedModel, anatomy: Anatomy, masks: Tensor
) -> dict[int | None, Tensor]:
    """Group masks by the block in which they first differ from all-ones (None: nowhere)."""
    blocks = {block: index for index, block in enumerate(_blocks(model, anatomy))}
    block_of_column = torch.zeros(masks.shape[1], dtype=torch.long)
    for site in anatomy.sites:
        block = _block_of(model, site)
        block_of_column[anatomy.columns[site.id]] = blocks[block] if block is not None else 0
    differs = masks.cpu() != 1
    found: dict[int | None, list[int]] = {}
    for index, row in enumerate(differs):
        columns = torch.nonzero(row).flatten()
        start = int(block_of_column[columns].min()) if len(columns) else None
        found.setdefault(start, []).append(index)
    return {start: torch.tensor(members) for start, members in found.items()}


def _record(model: PreTrainedModel, blocks: tuple[nn.Module, ...], batch: Batch) -> _Recording:
    calls: list[tuple[nn.Module, Any]] = []
    handles = [
        block.register_forward_hook(lambda module, _args, output: calls.append((module, output)))
        for block in blocks
    ]
    try:
        outputs = forward(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return _Recording(blocks, tuple(calls), outputs)


def _replays_exactly(
    model: PreTrainedModel,
    recording: _Recording,
    batch: Batch,
    loss: Loss,
    base: Tensor,
) -> bool:
    """Whether skipping all blocks but the last gives the loss of the full forward.

    Not so for models whose later layers read more of earlier ones than their output, or that draw random numbers, or whose
    blocks are called more than once or put out what can't be stacked row by row; they run in full.
    """
    calls = [module for module, _output in recording.calls]
    if tuple(calls) != recording.blocks or len(calls) < 2:
        return False
    rows = batch.num_rows
    inputs = {name: _repeat(value, 2, rows) for name, value in batch.inputs.items()}
    try:
        with _skipping(recording, until=len(calls) - 1, copies=2, rows=rows):
            outputs = forward(model, inputs)
    except RuntimeError:  # a block hands on something whose rows aren't those of the batch
        return False
    again = [loss(_part(outputs, copy, 2, rows), batch).float().cpu() for copy in range(2)]
    return all(bool(torch.allclose(one, base, rtol=1e-5, atol=1e-6)) for one in again)


def _run_masks(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    masks: Tensor,
    recording: _Recording | None,
    skip: int,
) -> Tensor:
    """Run some masks that start at the same block in one forward; returns [masks, examples]."""
    copies, rows = masks.shape[0], batch.num_rows
    inputs = {name: _repeat(value, copies, rows) for name, value in batch.inputs.items()}
    gates = masks.repeat_interleave(rows, dim=0)
    if recording is None:
        with gated(model, anatomy, gates=gates):
            outputs = forward(model, inputs)
    else:
        running = _sites_in(anatomy, model, recording.blocks[skip:])
        columns = torch.cat(
            [torch.arange(masks.shape[1])[anatomy.columns[s.id]] for s in running.sites]
        )
        with (
            _skipping(recording, until=skip, copies=copies, rows=rows),
            gated(model, running, gates=gates[:, columns.to(gates.device)]),
        ):
            outputs = forward(model, inputs)
    return torch.stack([loss(_part(outputs, copy, copies, rows), batch) for copy in range(copies)])


def _sites_in(anatomy: Anatomy, model: PreTrainedModel, blocks: Sequence[nn.Module]) -> Anatomy:
    """Return the anatomy of only those sites that lie in ``blocks``, or in none."""
    return Anatomy(
        anatomy.model_type,
        tuple(site for site in anatomy.sites if _block_of(model, site) in (None, *blocks)),
        anatomy.refused,
    )


@contextmanager
def _skipping(recording: _Recording, *, until: int, copies: int, rows: int) -> Iterator[None]:
    """Make the blocks before ``until`` return their recorded output, repeated, for the length of this block."""
    skipped = recording.calls[:until]
    before = {module: vars(module).get("forward") for module, _output in skipped}
    try:
        for module, output in skipped:
            repeated = _repeat(output, copies, rows)
            module.forward = lambda *_args, _repeated=repeated, **_kwargs: _repeated
        yield
    finally:
        for module, forward_before in before.items():
            del module.forward
            if forward_before is not None:  # some libraries give a module a forward of its own
                module.forward = forward_before


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_map_tensors(item, change) for item in value)
    if isinstance(value, list):
        return [_map_tensors(item, change) for item in value]
    if isinstance(value, dict):  # a ModelOutput is one, and is rebuilt as its own class
        return type(value)(**{key: _map_tensors(item, change) for key, item in value.items()})
    return value


def _repeat(value: Any, copies: int, rows: int) -> Any:
    """Repeat whatever has the rows in dimension 0."""

    def repeat(tensor: Tensor) -> Tensor:
        if copies == 1 or tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        return tensor.repeat(copies, *[1] * (tensor.dim() - 1))

    return _map_tensors(value, repeat)


def _part(outputs: Any, copy: int, copies: int, rows: int) -> Any:
    """Return the outputs of one of the stacked masks."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != copies * rows:
            return tensor
        return tensor[copy * rows : (copy + 1) * rows]

    return _map_tensors(outputs, cut)
