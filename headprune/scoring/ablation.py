"""Leave one out: what the loss does when a head is silent."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.replay import losses
from headprune.scoring.estimate import Estimate, mean_and_error


def ablation(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_n [l_n(without h) - l_n]``; the standard error is that of the paired differences.

    The exact effect of removing one head, and no more: heads that can replace each other all look unimportant, so it is an
    honest measurement and a poor order for removing many (Michel et al. 2019, section 3).
    """
    del seed
    heads = len(anatomy.heads)
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    found = losses(
        model, anatomy, batches=batches, loss=loss, masks=masks, context=context, name="ablation"
    ).double()
    differences = found[1:] - found[0]
    return mean_and_error(differences.sum(1), differences.square().sum(1), n=differences.shape[1])
