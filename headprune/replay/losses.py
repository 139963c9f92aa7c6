"""``losses(masks)``, batch by batch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss
from headprune.distributed import World
from headprune.memory import Parts, halves_of_batch
from headprune.passes import SILENT, RunContext, Work, each_batch, one_after_another
from headprune.placement import input_device
from headprune.replay.budget import TOKENS_ON_CPU, in_chunks, tokens_of, tokens_that_fit
from headprune.replay.narrow import find_tail, reads_nothing_else
from headprune.replay.recording import compiled_blocks, record
from headprune.replay.resume import Resumption, run_masks
from headprune.replay.routes import TRIED, ReplayModes, find_routes, modes_on, summary


@dataclass(frozen=True, eq=False)
class _Run:
    """What is the same for every batch."""

    model: PreTrainedModel
    anatomy: Anatomy
    loss: Loss
    base: Float[Tensor, " heads"]
    masks: Float[Tensor, "masks heads"]
    routes: ReplayModes
    tokens_per_forward: int
    compiled: Mapping[nn.Module, Callable[..., Any]]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    masks: Float[Tensor, "masks heads"],
    base: Float[Tensor, " heads"] | None = None,
    tokens_per_forward: int | None = None,
    context: RunContext = SILENT,
    name: str = "losses",
) -> Float[Tensor, "masks examples"]:
    """Return the loss of every example under every mask.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy; columns of ``masks`` are ``anatomy.heads``, 1 keeps and 0 silences.
        batches: The data. Column ``i`` of the result is the example whose index is ``i``.
        loss: Maps the model's outputs for a batch to one loss per example.
        masks: The masks, in any order.
        base: What is recorded and resumed from (default: all heads). The nearer the masks are to it, the later in the model
            they start; pruning step by step has the heads that are gone already at 0.
        tokens_per_forward: Masks are stacked until a forward has about this many tokens.
        context: How to go over the data: progress, journal, processes.
        name: What is being done, for the progress bar; results are kept under it.

    Returns:
        fp32 losses on the CPU.

    Raises:
        ModelError: A single mask is too large for the device's memory.
    """
    masks = masks.cpu()
    base = torch.ones(masks.shape[1]) if base is None else base.cpu()
    first = batches[0].to(input_device(model))
    _few, routes = Parts(name, halves_of_batch).largest(
        first.take(TRIED),
        lambda few: find_routes(model, anatomy, few, loss, base=base, masks=masks),
    )
    if (text := summary(routes)) is not None:
        context.notify(text)
    compiled = compiled_blocks(model, anatomy) if context.compile else {}
    run = _Run(model, anatomy, loss, base, masks, routes, tokens_per_forward or 0, compiled)
    if not tokens_per_forward:
        run = replace(run, tokens_per_forward=_tokens(run, first, context))
    if len(batches) >= context.world.size:
        return _over_batches(run, batches, context=context, name=name)
    # Fewer batches than processes: each takes some of the masks instead.
    world = context.world
    mine = torch.arange(len(masks)).tensor_split(world.size)[world.rank]
    found = torch.zeros(len(masks), sum(batch.num_examples for batch in batches))
    alone = replace(context, world=World())
    name = f"{name}-{world.rank}of{world.size}"
    found[mine] = _over_batches(_only(run, mine), batches, context=alone, name=name)
    return world.summed(found)


def _tokens(run: _Run, batch: Batch, context: RunContext) -> int:
    """Return how many tokens forwards are to have: the same on every process, and in a run that goes on after a stop.

    Stacked otherwise, the last bits of the losses would be others.
    """
    device = batch.example_of_row.device
    site = next((site for site, mode in run.routes.modes.items() if mode != "plain"), None)
    if device.type != "cuda" or site is None:
        return TOKENS_ON_CPU
    name, found = f"tokens-{batch.num_tokens}", torch.zeros(1, dtype=torch.long)
    if context.world.is_main:
        kept = context.journal.get(name) if context.journal else None
        found[0] = (
            Parts("replay", halves_of_batch).largest(
                batch, lambda part: _measured(run, part, site)
            )[1]
            if kept is None
            else int(kept)
        )
        if context.journal is not None:
            context.journal.put(name, found)
    return int(context.world.summed(found))


def _measured(run: _Run, batch: Batch, site: Site) -> int:
    recording = record(run.model, run.anatomy, batch, run.loss, base=run.base)
    given = Resumption(run.model, run.anatomy, batch, run.loss, run.base, recording)
    mask = run.masks[run.routes.starts[site][:1]]
    mode = run.routes.modes[site]
    return tokens_that_fit(
        lambda copies: run_masks(given, mask.expand(copies, -1), site=site, mode=mode),
        per_copy=tokens_of(recording, batch),
        device=batch.example_of_row.device,
    )


def _only(run: _Run, wanted: Tensor) -> _Run:
    """Return the same with some of the masks."""
    starts = {
        site: torch.nonzero(torch.isin(wanted, members)).flatten()
        for site, members in run.routes.starts.items()
    }
    return replace(run, masks=run.masks[wanted], routes=replace(run.routes, starts=starts))


def _over_batches(run: _Run, batches: Sequence[Batch], *, context: RunContext, name: str) -> Tensor:
    work = Work[Batch](
        lambda batch: _batch_losses(run, batch),
        shape=lambda batch: (len(run.masks), batch.num_examples),
        dtype=torch.float32,
        join=one_after_another(1),
    )
    found = each_batch(batches, work, context=context, name=name, key=_digest(run))
    result = torch.empty(len(run.masks), sum(batch.num_examples for batch in batches))
    for batch, values in zip(batches, found, strict=True):
        result[:, batch.indices] = values
    return result


def _digest(run: _Run) -> str:
    """Return a name for these masks: what a journal has of others is none of theirs."""
    content = torch.cat([run.masks, run.base[None]]).contiguous().numpy().tobytes()
    return f"-{hashlib.sha256(content).hexdigest()[:8]}"


def _batch_losses(run: _Run, batch: Batch) -> Float[Tensor, "masks examples"]:
    """Return the losses of one batch, on the CPU: nothing in here waits for the model's device once a mask or a site."""
    batch = batch.to(input_device(run.model))
    recording = record(run.model, run.anatomy, batch, run.loss, base=run.base)
    last = run.routes.last
    tail = find_tail(run.model, batch, run.loss, recording, last=last) if last else None
    # A row whose loss has no gradient just now reads all the same.
    if tail and not reads_nothing_else(run.model, batch, run.loss, recording, tail):
        tail = None
    given = Resumption(
        run.model, run.anatomy, batch, run.loss, run.base, recording, tail, run.compiled
    )
    order: list[Tensor] = []
    found: list[Tensor] = []
    stacked = max(1, run.tokens_per_forward // tokens_of(recording, batch))
    modes = modes_on(run.routes, given, stacks=stacked > 1)
    for site, members in run.routes.starts.items():
        if len(members):
            order.append(members)
            if site is None:
                found.append(recording.losses.expand(len(members), -1))
                continue
            run_here = partial(run_masks, given, site=site, mode=modes[site])
            losses_here, fitted = in_chunks(run.masks[members], stacked, run_here)
            stacked = fitted or stacked  # what was too much for one attention is for the next
            found.append(losses_here)
    losses = torch.empty(len(run.masks), batch.num_examples)
    if order:  # of fewer masks than processes, some have none
        losses[torch.cat(order)] = torch.cat(found).cpu()
    return losses
