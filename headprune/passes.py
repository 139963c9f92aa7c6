"""A pass over the data: every batch once, by one process, kept on disk when it is done, and put together in the data's order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from headprune.distributed import World
from headprune.journal import Journal
from headprune.memory import Parts, halves_of_batch

Piece = TypeVar("Piece")
"""Of the work: a batch, or one with what is to be done to it."""

Track: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps the iteration over batches, with a description, for a progress bar."""


Item = TypeVar("Item")


@runtime_checkable
class Progress(Protocol):
    """How a stage talks while it works."""

    def notify(self, text: str) -> None:
        """Tell the user what is going on."""

    def track(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """Yield the items, showing progress."""


def _ignore(_text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class RunContext:
    """How to go over the data.

    Args:
        track: Wraps the iteration over batches, for a progress bar.
        notify: Tells the user something (default: nobody).
        journal: Where results are kept batch by batch, and found again.
        world: The processes that share the batches.
        compile: Whether blocks are compiled (torch.compile).
        tokens_per_forward: Masks share a forward until it has about this many tokens; 0: as many as are fast on the device.
    """

    track: Track | None = None
    notify: Callable[[str], None] = _ignore
    journal: Journal | None = None
    world: World = field(default_factory=World)
    compile: bool = False
    tokens_per_forward: int = 0


SILENT = RunContext()
"""One process, nothing said, nothing kept."""


@dataclass(frozen=True)
class Work(Generic[Piece]):
    """What is done to every batch.

    Args:
        compute: ``compute(piece)``; its result has shape ``shape(piece)`` and type ``dtype``, wherever it is computed.
        shape: Shape of a piece's result.
        dtype: Type of the results.
        join: Makes a piece's result of those of its parts, in their order: :func:`summed`, or :func:`one_after_another`.
        halves: Returns the two halves of a piece, or nothing where it can't be halved.
    """

    compute: Callable[[Piece], Tensor]
    shape: Callable[[Piece], tuple[int, ...]]
    dtype: torch.dtype
    join: Callable[[Sequence[Tensor]], Tensor]
    halves: Callable[[Piece], Sequence[Piece]] = halves_of_batch  # type: ignore[assignment] # of a Batch


def summed(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the results of a piece's parts."""
    return parts[0] if len(parts) == 1 else torch.stack(tuple(parts)).sum(0)


def one_after_another(dim: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return what puts the results of a piece's parts one behind the other."""
    return lambda parts: torch.cat(tuple(parts), dim=dim)


def each_batch(
    batches: Sequence[Piece], work: Work[Piece], *, context: RunContext, name: str, key: str = ""
) -> tuple[Tensor, ...]:
    """Return ``work.compute(batch)`` for every batch, on the CPU, the same on every process.

    Where memory runs out, a batch is computed in halves, and what they come to is put together: its result is that of the batch.

    Args:
        batches: The data. Every process has all of it, and computes its share.
        work: What is done to each.
        context: How to go over the data.
        name: What is being done, for the progress bar; results are kept under it.
        key: Tells results of the same name apart.

    Raises:
        WorkerError: Another process died.
        CheckpointError: A result can't be kept.
        MemoryLimitError: Memory ran out on a batch that can't be halved.
    """
    found = [torch.zeros(work.shape(batch), dtype=work.dtype) for batch in batches]
    mine = context.world.share(len(batches))
    share = [batches[index] for index in mine]
    places = iter(mine)
    parts = Parts(name, work.halves, context.notify)

    def compute(batch: Piece) -> Tensor:
        return work.join(parts.run(batch, lambda part: work.compute(part).cpu()))

    for batch in context.track(share, name) if context.track else share:
        place = next(places)
        found[place] = kept(
            context.journal,
            f"{name}{key}-{place:06d}",
            partial(compute, batch),
            notify=context.notify,
        )
    if context.world.size == 1:
        return tuple(found)
    together = context.world.summed(torch.cat([result.flatten() for result in found]))
    parts_of_all = together.split([result.numel() for result in found])
    return tuple(part.view(old.shape) for part, old in zip(parts_of_all, found, strict=True))


def kept(
    journal: Journal | None,
    name: str,
    compute: Callable[[], Tensor],
    *,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Return what the journal has under a name, else compute it and keep it; on the CPU."""
    if journal is None:
        return compute().cpu()
    done = journal.get(name, notify=notify)
    if done is None:
        done = compute().cpu()
        journal.put(name, done)
    return done
