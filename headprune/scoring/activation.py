"""Minitron: how large a head's output is."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import Pass
from headprune.scoring.activations import moments
from headprune.scoring.derivatives import num_examples
from headprune.scoring.estimate import Estimate


def activation(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    over: Pass,
) -> Estimate:
    """Score heads by ``|| mean_t |z_h,t| ||_2``: every coordinate's mean size over positions, and the l2 norm of these.

    Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", 2024, section 2.2 (mean over
    the sequence, l2 over the rest).
    """
    del loss, seed
    found = moments(model, anatomy, batches=batches, over=over)
    values = torch.cat([found[site.id].size.norm(dim=1) for site in anatomy.sites])
    return Estimate(values, None, num_examples(batches))
