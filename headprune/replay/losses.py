"""``losses(masks)``, batch by batch: how many masks share a forward is measured on a GPU, and halved where memory runs out."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, Loss
from headprune.passes import (
    SILENT,
    Parts,
    RunContext,
    Work,
    attempt,
    each_batch,
    halves_of_batch,
    one_after_another,
)
from headprune.placement import input_device, release_memory
from headprune.replay.modes import TRIED, ReplayModes, find_modes, summary
from headprune.replay.resume import CompiledBlocks, compiled_blocks, record, run_masks
from headprune.runtime.distributed import World

TOKENS_ON_CPU = 4096
"""A CPU's matrix products are as fast as they get with this many; a number that was measured would differ from run to run."""

# Twice the tokens must be worth it: a forward that is this much faster per token.
_LEAST_GAIN = 1.1
_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True, eq=False)
class _Run:
    """What is the same for every batch."""

    model: PreTrainedModel
    anatomy: Anatomy
    loss: Loss
    masks: Float[Tensor, "masks heads"]
    modes: ReplayModes
    compiled: CompiledBlocks
    tokens_per_forward: int


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    masks: Float[Tensor, "masks heads"],
    context: RunContext = SILENT,
    name: str = "losses",
) -> Float[Tensor, "masks examples"]:
    """Return the loss of every example under every mask.

    Args:
        model: The model, in eval mode; inside :func:`~headprune.masking.gated` it is the model without those heads.
        anatomy: Its anatomy; columns of ``masks`` are ``anatomy.heads``, 1 keeps and 0 silences.
        batches: The data. Column ``i`` of the result is the example whose index is ``i``.
        loss: Maps the model's outputs for a batch to one loss per example.
        masks: The masks, in any order. The later in the model they silence their first head, the less they cost.
        context: How the work runs: progress, journal, processes, tokens of a forward.
        name: What is being done, for the progress bar; results are kept under it.

    Returns:
        fp32 losses on the CPU.

    Raises:
        ModelError: A single mask is too large for the device's memory.
    """
    masks = masks.cpu()
    first = batches[0].to(input_device(model))
    _few, modes = Parts(name, halves_of_batch).largest(
        first.take(TRIED), lambda few: find_modes(model, anatomy, few, loss, masks)
    )
    if (text := summary(modes)) is not None:
        context.notify(text)
    compiled = compiled_blocks(model, anatomy) if context.compile else {}
    run = _Run(model, anatomy, loss, masks, modes, compiled, context.tokens_per_forward)
    if not run.tokens_per_forward:
        run = replace(run, tokens_per_forward=_tokens(run, first, context))
    world = context.world
    if len(batches) >= world.size:
        return _over_batches(run, batches, context=context, name=name)
    # Fewer batches than processes: each takes some of the masks instead.
    mine = torch.arange(len(masks)).tensor_split(world.size)[world.rank]
    results = torch.zeros(len(masks), sum(batch.num_examples for batch in batches))
    alone = replace(context, world=World())
    name = f"{name}-{world.rank}of{world.size}"
    results[mine] = _over_batches(_only(run, mine), batches, context=alone, name=name)
    return world.summed(results)


def _tokens(run: _Run, batch: Batch, context: RunContext) -> int:
    """Return how many tokens forwards are to have: the same on every process, and in a run that goes on after a stop.

    Stacked otherwise, the last bits of the losses would be others.
    """
    device = batch.example_of_row.device
    site = next((site for site, mode in run.modes.by_site.items() if mode != "plain"), None)
    if device.type != "cuda" or site is None:
        return TOKENS_ON_CPU
    name, tokens = f"tokens-{batch.num_tokens}", torch.zeros(1, dtype=torch.long)
    if context.world.is_main:
        kept = context.journal.get(name) if context.journal else None
        if kept is None:
            parts = Parts("replay", halves_of_batch)
            _part, tokens[0] = parts.largest(batch, lambda part: _measured(run, part, site))
        else:
            tokens[0] = int(kept)
        if context.journal is not None:
            context.journal.put(name, tokens)
    return int(context.world.summed(tokens))


def _measured(run: _Run, batch: Batch, site: Site) -> int:
    state = record(run.model, run.anatomy, batch, run.loss)
    mask, mode = run.masks[run.modes.starts[site][:1]], run.modes.by_site[site]
    return tokens_that_fit(
        lambda copies: run_masks(state, mask.expand(copies, -1), site=site, mode=mode),
        per_copy=state.recording.num_tokens or batch.num_tokens,
        device=batch.example_of_row.device,
    )


def _only(run: _Run, wanted: Tensor) -> _Run:
    """Return the same with some of the masks."""
    starts = {
        site: torch.nonzero(torch.isin(wanted, members)).flatten()
        for site, members in run.modes.starts.items()
    }
    return replace(run, masks=run.masks[wanted], modes=replace(run.modes, starts=starts))


def _over_batches(run: _Run, batches: Sequence[Batch], *, context: RunContext, name: str) -> Tensor:
    work = Work[Batch](
        lambda batch: _batch_losses(run, batch),
        shape=lambda batch: (len(run.masks), batch.num_examples),
        dtype=torch.float32,
        join=one_after_another(1),
    )
    # What a journal has of other masks is none of these.
    digest = hashlib.sha256(run.masks.contiguous().numpy().tobytes()).hexdigest()[:8]
    by_batch = each_batch(batches, work, context=context, name=name, key=f"-{digest}")
    result = torch.empty(len(run.masks), sum(batch.num_examples for batch in batches))
    for batch, values in zip(batches, by_batch, strict=True):
        result[:, batch.indices] = values
    return result


def _batch_losses(run: _Run, batch: Batch) -> Float[Tensor, "masks examples"]:
    """Return the losses of one batch, on the CPU: nothing in here waits for the model's device once a mask or a site."""
    batch = batch.to(input_device(run.model))
    state = record(run.model, run.anatomy, batch, run.loss, compiled=run.compiled)
    stacked = max(1, run.tokens_per_forward // (state.recording.num_tokens or batch.num_tokens))
    modes = run.modes.on(state, stacks=stacked > 1)
    order: list[Tensor] = []
    results: list[Tensor] = []
    for site, members in run.modes.starts.items():
        if not len(members):
            continue
        order.append(members)
        if site is None:
            results.append(state.recording.losses.expand(len(members), -1))
            continue
        run_site = partial(run_masks, state, site=site, mode=modes[site])
        of_site, fitted = in_chunks(run.masks[members], stacked, run_site)
        stacked = fitted or stacked  # what was too much for one attention is for the next
        results.append(of_site)
    losses = torch.empty(len(run.masks), batch.num_examples)
    if order:  # of fewer masks than processes, some have none
        losses[torch.cat(order)] = torch.cat(results).cpu()
    return losses


def tokens_that_fit(run: Callable[[int], object], *, per_copy: int, device: torch.device) -> int:
    """Return how many tokens a forward should have on a GPU.

    ``run(copies)`` is timed with 1, 2, 4, ... copies of a batch, as far as the memory that one took lets expect room for more,
    until twice as many are hardly faster per token.
    """

    def seconds(copies: int) -> float:
        try:
            run(copies)  # the first one of its size finds its kernels
            torch.cuda.synchronize(device)
            start: float | None = time.perf_counter()
            run(copies)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            start = None
        if start is None:
            release_memory()
            return float("inf")
        return time.perf_counter() - start

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(1)
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    return per_copy * best_copies(seconds, most=int(_SHARE_OF_MEMORY * free / taken))


def best_copies(seconds: Callable[[int], float], *, most: int) -> int:
    """Return how many copies of a batch to run at once: doubled while that is faster per copy.

    >>> best_copies(lambda copies: 1 + copies / 8, most=200)
    64
    >>> best_copies(lambda copies: 1 + copies / 8, most=5)
    4
    """
    copies, taken = 1, seconds(1)
    while 2 * copies <= most:
        twice = seconds(2 * copies)
        if 2 * taken < _LEAST_GAIN * twice:
            break
        copies, taken = 2 * copies, twice
    return copies


def in_chunks(
    masks: Tensor, size: int, run: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int | None]:
    """Return ``run`` of all masks, ``size`` of them at a time; half as many where memory runs out, nothing done twice.

    Where memory runs out on a single mask, that is raised: whoever made the batch makes it smaller.

    Returns:
        The results, and how many at a time fitted where it was fewer than ``size``, else None.
    """
    results: list[Tensor] = []
    start, fitted = 0, None
    size = min(size, len(masks))
    while start < len(masks):
        piece = masks[start : start + size]
        if len(piece) == 1:
            result: Tensor | None = run(piece)
        else:
            result, _reason = attempt(partial(run, piece))
        if result is None:
            fitted = size = len(piece) // 2
        else:
            results.append(result)
            start += len(piece)
    return torch.cat(results), fitted
