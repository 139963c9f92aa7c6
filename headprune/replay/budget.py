"""How many masks fit into one forward: measured on a GPU, and halved where memory runs out all the same."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from headprune.batch import Batch
from headprune.memory import attempt
from headprune.placement import release_memory
from headprune.replay.recording import Recording

TOKENS_ON_CPU = 4096
"""A CPU's matrix products are as fast as they get with this many; a number that was measured would differ from run to run."""

# Twice the tokens must be worth it: a forward that is this much faster per token.
_LEAST_GAIN = 1.1
_SHARE_OF_MEMORY = 0.8


def tokens_that_fit(run: Callable[[int], object], *, per_copy: int, device: torch.device) -> int:
    """Return how many tokens a forward should have on a GPU.

    ``run(copies)`` is timed with 1, 2, 4, ... copies of a batch, as far as the memory that one took lets expect room for more,
    until twice as many are hardly faster per token.

    Args:
        run: Runs so many copies of a batch in one forward.
        per_copy: Tokens of one copy.
        device: Where it runs.
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


def tokens_of(recording: Recording, batch: Batch) -> int:
    """Return how many tokens a batch has where attentions see them: patches, frames and targets are no less than words."""
    seen = [here.projection.read for here in recording.sites.values()]
    counts = [z.shape[:-1].numel() for z in seen if isinstance(z, Tensor)]
    return max(counts, default=batch.num_tokens)


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
    found: list[Tensor] = []
    start, fitted = 0, None
    size = min(size, len(masks))
    while start < len(masks):
        piece = masks[start : start + size]
        if len(piece) == 1:
            losses = run(piece)
        else:
            made, _reason = attempt(partial(run, piece))
            if made is None:
                fitted = size = len(piece) // 2
                continue
            losses = made
        found.append(losses)
        start += len(losses)
    return torch.cat(found), fitted
