"""Memory that runs out: the work is halved and goes on; what can't be halved any more is refused, with what would fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from headprune.batch import Batch
from headprune.errors import MemoryLimitError, is_out_of_memory
from headprune.placement import release_memory

Piece = TypeVar("Piece")
"""Of the work: a batch, or one with what is to be done to it."""

Result = TypeVar("Result")


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
        shorter = f"`max_length={max(1, length // 2)}`"
    return MemoryLimitError(
        f"memory ran out{size}, and it can't be done in smaller parts: {reason}",
        where=name,
        hint=f"{shorter}, `dtype=bfloat16` or a `device` with more memory; nothing of what is done is lost",
    )
