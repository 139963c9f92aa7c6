"""A pass over the data: every batch once, by one process, kept on disk when it is done, and put together in the data's order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from headprune.allocator import kept_memory
from headprune.batch import Batch
from headprune.distributed import World
from headprune.journal import Journal

Track: TypeAlias = Callable[[Sequence[Batch], str], Iterable[Batch]]
"""Wraps the iteration over batches, with a description, for a progress bar."""


@dataclass(frozen=True)
class Pass:
    """How to go over the data.

    Args:
        track: Wraps the iteration over batches, for a progress bar.
        say: Tells the user something.
        journal: Where results are kept batch by batch, and found again.
        world: The processes that share the batches.
        compile: Whether blocks are compiled (torch.compile).
    """

    track: Track | None = None
    say: Callable[[str], None] | None = None
    journal: Journal | None = None
    world: World = field(default_factory=World)
    compile: bool = False

    def tell(self, text: str) -> None:
        """Tell the user something, if there is somebody to tell."""
        if self.say is not None:
            self.say(text)


IN_SILENCE = Pass()
"""One process, nothing said, nothing kept."""


def each_batch(
    batches: Sequence[Batch],
    compute: Callable[[Batch], Tensor],
    *,
    shape: Callable[[Batch], tuple[int, ...]],
    dtype: torch.dtype,
    over: Pass,
    name: str,
    key: str = "",
) -> tuple[Tensor, ...]:
    """Return ``compute(batch)`` for every batch, on the CPU, the same on every process.

    Args:
        batches: The data. Every process has all of it, and computes its share.
        compute: The work; its result has shape ``shape(batch)`` and type ``dtype``, wherever the batch is computed.
        shape: Shape of a batch's result.
        dtype: Type of the results.
        over: How to go over the data.
        name: What is being done, for the progress bar; results are kept under it.
        key: Tells results of the same name apart.

    Raises:
        WorkerError: Another process died.
        CheckpointError: A result can't be kept.
    """
    found = [torch.zeros(shape(batch), dtype=dtype) for batch in batches]
    mine = over.world.share(len(batches))
    share = [batches[index] for index in mine]
    places = iter(mine)
    with kept_memory():
        for batch in over.track(share, name) if over.track else share:
            place = next(places)
            found[place] = kept(over.journal, f"{name}{key}-{place:06d}", partial(compute, batch))
    if over.world.size == 1:
        return tuple(found)
    together = over.world.summed(torch.cat([result.flatten() for result in found]))
    parts = together.split([result.numel() for result in found])
    return tuple(part.view(old.shape) for part, old in zip(parts, found, strict=True))


def kept(journal: Journal | None, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return what the journal has under a name, else compute it and keep it; on the CPU."""
    if journal is None:
        return compute().cpu()
    done = journal.get(name)
    if done is None:
        done = compute().cpu()
        journal.put(name, done)
    return done
