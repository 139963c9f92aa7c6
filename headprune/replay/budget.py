"""How many masks fit into one forward, and what to do when they don't."""

from collections.abc import Callable

import torch
from torch import Tensor

from headprune.errors import ModelError


def in_chunks(masks: Tensor, size: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``run`` of all masks, ``size`` of them at a time; half as many where memory runs out, nothing done twice.

    Raises:
        ModelError: A single mask is too much.
    """
    found: list[Tensor] = []
    start = 0
    while start < len(masks):
        try:
            found.append(run(masks[start : start + size]))
        except (torch.OutOfMemoryError, MemoryError) as error:
            if size == 1:
                raise ModelError(
                    "the device ran out of memory on a batch of the usual size",
                    where="replay",
                    hint="use a smaller --batch-size or --max-length",
                ) from error
            size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start += len(found[-1])
    return torch.cat(found)
