"""The diagonal of the Fisher information of the gates: squares where ``gradient`` has absolute values."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import Pass
from headprune.scoring.derivatives import mean_over_batches, mean_over_examples
from headprune.scoring.estimate import Estimate


def fisher(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    over: Pass,
) -> Estimate:
    """Score heads by ``mean_n (d l_n / d xi_h)^2`` at ``xi = 1``.

    Of a model at a minimum, half of it is what removing the head adds to the loss, up to second order and with the Hessian
    taken for the empirical Fisher matrix.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, eq. 6 (theirs by batch:
    :func:`fisher_per_batch`).
    """
    del seed
    return mean_over_examples(
        model, anatomy, batches=batches, loss=loss, over=over, name="fisher", size=torch.square
    )


def fisher_per_batch(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    over: Pass,
) -> Estimate:
    """Score heads by ``mean_b (d l_b / d xi_h)^2``, ``l_b`` the mean loss of a batch, as the code of Kwon et al. 2022 does.

    Depends on the batch size. Here for comparison.
    """
    del seed
    return mean_over_batches(
        model,
        anatomy,
        batches=batches,
        loss=loss,
        over=over,
        name="fisher by batch",
        size=torch.square,
    )
