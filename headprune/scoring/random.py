"""A seeded control: whatever a method does, it must beat this."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.scoring.estimate import Estimate


def random(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by uniform random numbers from ``seed``."""
    del model, batches, loss, context
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(anatomy.heads), generator=generator, dtype=torch.float64)
    return Estimate(values, None, 0)
