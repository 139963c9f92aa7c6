"""The size of what a head writes: needs no data."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.scoring.estimate import Estimate
from headprune.scoring.output_weight import output_weight


def magnitude(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by the Frobenius norm of their columns of the output projection, ``||W_O,h||_F``."""
    del batches, loss, seed, context
    norms = [output_weight(model, site).flatten(1).norm(dim=1) for site in anatomy.sites]
    return Estimate(torch.cat(norms), None, 0)
