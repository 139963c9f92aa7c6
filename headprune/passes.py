"""A pass over the data: every batch once, by one process, kept on disk when it is done, and put together in the data's order.

Where memory runs out, a batch is halved and the pass goes on; what can't be halved any more is refused, with what would fit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from headprune.batch import Batch
from headprune.errors import HeadpruneError, MemoryLimitError, is_out_of_memory
from headprune.placement import release_memory
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal

Piece = TypeVar("Piece")
"""Of the work: a batch, or one with what is to be done to it."""

Result = TypeVar("Result")

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
    notify: Callable[[str], None] = lambda _text: None
    journal: Journal | None = None
    world: World = field(default_factory=World)
    compile: bool = False
    tokens_per_forward: int = 0

    def tracked(self, items: Sequence[Any], name: str) -> Iterable[Any]:
        """Return the items, watched by the progress bar if there is one."""
        return self.track(items, name) if self.track else items

    def shared(self, items: Sequence[Piece], name: str) -> Iterator[tuple[int, Piece]]:
        """Yield this process's share of the items with their indices, watched by the progress bar."""
        share = self.world.share(len(items))
        yield from zip(share, self.tracked([items[index] for index in share], name), strict=True)

    def kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what the journal has under a name, else compute it and keep it; on the CPU."""
        done = self.journal.get(name, notify=self.notify) if self.journal is not None else None
        if done is None:
            done = compute().cpu()
            if self.journal is not None:
                self.journal.put(name, done)
        return done


@contextmanager
def resumable(journal: Journal | None, progress: Progress) -> Iterator[None]:
    """If the work is interrupted or fails, report how many batches are done and that the same command resumes."""
    try:
        yield
    except (KeyboardInterrupt, HeadpruneError) as error:
        if journal is not None and (done := journal.count()):
            text = f"batches done: {done}; the same command goes on from there"
            if isinstance(error, KeyboardInterrupt):
                error.add_note(text)
            else:
                progress.notify(text)
        raise


SILENT = RunContext()
"""One process, nothing said, nothing kept."""


def attempt(compute: Callable[[], Result]) -> tuple[Result, None] | tuple[None, str]:
    """Return ``compute()`` and None; or None and what was said, where memory ran out: all that the attempt held is free again."""
    try:
        return compute(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    # Only out here is what the failed work held let go of: the error holds its frames.
    release_memory()
    return None, reason


def halves_of_batch(batch: Batch) -> Sequence[Batch]:
    """Return the two halves of a batch, or nothing where it can't be halved."""
    return batch.halves()


def halves_of_inputs(inputs: Any) -> Sequence[dict[str, Tensor]]:
    """Return the two halves of a model's inputs, or nothing where they have one row or don't come row by row."""
    counts = {value.shape[:1] for value in inputs.values()}
    rows = next(iter(counts))[0] if len(counts) == 1 and all(counts) else 1
    if rows < 2:
        return ()
    cut = (slice(None, rows // 2), slice(rows // 2, None))
    return [{name: value[part] for name, value in inputs.items()} for part in cut]


@dataclass(eq=False)
class Parts(Generic[Piece]):
    """Runs pieces of work whole where memory holds them, else in halves, quarters, ...

    Once a piece had to be halved, those after it are from the start.

    Args:
        name: What is being done, for the user.
        halves: Returns the two halves of a piece, or nothing where it can't be halved.
        notify: Tells the user that pieces were halved.
        times: How often pieces are halved from the start.
    """

    name: str
    halves: Callable[[Piece], Sequence[Piece]]
    notify: Callable[[str], None] | None = None
    times: int = 0

    def run(self, piece: Piece, compute: Callable[[Piece], Result]) -> list[Result]:
        """Return the results of a piece's parts, in order.

        Raises:
            MemoryLimitError: Memory ran out on a part that can't be halved.
        """
        waiting, results = [(piece, 0)], []
        while waiting:
            part, depth = waiting.pop()
            smaller = self.halves(part) if depth < self.times else ()
            if not smaller:
                result, reason = attempt(partial(compute, part))
                if reason is None:
                    results.append(result)
                    continue
                smaller = self.halves(part)
                if not smaller:
                    raise too_large(self.name, part, reason)
                self._deepen(depth + 1)
            waiting += [(half, depth + 1) for half in reversed(smaller)]
        return results  # type: ignore[return-value] # a result is None only where memory ran out

    def largest(self, piece: Piece, compute: Callable[[Piece], Result]) -> tuple[Piece, Result]:
        """Return the first half, quarter, ... of a piece that memory holds, and its result.

        Raises:
            MemoryLimitError: Memory ran out on a part that can't be halved.
        """
        while True:
            result, reason = attempt(partial(compute, piece))
            if reason is None:
                return piece, result  # type: ignore[return-value] # as above
            smaller = self.halves(piece)
            if not smaller:
                raise too_large(self.name, piece, reason)
            piece = smaller[0]

    def _deepen(self, times: int) -> None:
        if times > self.times:
            self.times = times
            if self.notify is not None:
                self.notify(
                    f"memory ran out ({self.name}): going on with batches in {2**times} parts"
                )


def too_large(name: str, piece: object, reason: str) -> MemoryLimitError:
    """Return the error for a piece that can't be halved and is too large, with what would fit."""
    batch = piece[0] if isinstance(piece, (tuple, list)) else piece
    size, shorter = "", "a smaller `max_length`"
    if isinstance(batch, Batch):
        length = batch.num_tokens // max(1, batch.num_rows)
        size = f", with {batch.num_examples} example(s) of {length} tokens"
        shorter = f"`max_length` {max(1, length // 2)}"
    return MemoryLimitError(
        f"memory ran out{size}, and it can't be done in smaller parts: {reason}",
        where=name,
        hint=f"{shorter}, `dtype` bfloat16 or a `device` with more memory; nothing of what is done is lost",
    )


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
    results = [torch.zeros(work.shape(batch), dtype=work.dtype) for batch in batches]
    parts = Parts(name, work.halves, context.notify)

    def compute(batch: Piece) -> Tensor:
        return work.join(parts.run(batch, lambda part: work.compute(part).cpu()))

    for index, batch in context.shared(batches, name):
        results[index] = context.kept(f"{name}{key}-{index:06d}", partial(compute, batch))
    if context.world.size == 1:
        return tuple(results)
    together = context.world.summed(torch.cat([result.flatten() for result in results]))
    flat = together.split([result.numel() for result in results])
    return tuple(part.view(old.shape) for part, old in zip(flat, results, strict=True))
