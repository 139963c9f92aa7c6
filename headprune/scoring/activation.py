"""Minitron: how large a head's output is."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.passes import RunContext
from headprune.scoring.estimate import Estimate
from headprune.scoring.moments import moments


def activation(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``|| mean_t |z_h,t| ||_2``: every coordinate's mean size over positions, and the l2 norm of these.

    Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", 2024, section 2.2; of the
    aggregates that they try, the mean over all positions of the data, every position counting once.
    """
    del loss, seed
    found = moments(model, anatomy, batches=batches, context=context)
    values = torch.cat([found[site.id].size.norm(dim=1) for site in anatomy.sites])
    return Estimate(values, None, num_examples(batches))
