"""Michel et al. 2019, eq. 2: how much the loss would move with a head's gate; taken per example, per token or per batch."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.passes import RunContext
from headprune.scoring.derivatives import each_derivative, mean_over_stretches
from headprune.scoring.estimate import Estimate, mean_and_error


def gradient(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``I_h = mean_n |d l_n / d xi_h|`` at ``xi = 1``, with ``xi_h`` a gate on the head's output.

    The absolute value is taken per **example**, as in the paper: taken per batch, or per token of a batch-mean loss, the
    ranking depends on the batch size. Every row of a batch has gates of its own, so one backward gives all examples. Weights are
    frozen meanwhile: the backward goes to activations only.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """
    del seed
    found = each_derivative(model, anatomy, batches=batches, loss=loss, context=context)
    sizes = torch.cat(found).abs()
    return mean_and_error(sizes.sum(0), sizes.square().sum(0), n=len(sizes))


def gradient_per_token(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_n sum_t |z_h,t . d l_n / d z_h,t|``: the absolute value is taken per token, as Michel's code does.

    The code that came with the paper sums over tokens what the paper sums over examples, so that what a head does at one
    position can't make up for what it does at another.
    """
    del seed
    return mean_over_stretches(
        model,
        anatomy,
        batches=batches,
        loss=loss,
        context=context,
        name="gradient by token",
        length=None,
    )


def gradient_per_batch(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_b |d l_b / d xi_h|``, ``l_b`` the mean loss of a batch: what most tools compute.

    (transformers v4's run_bertology and TextPruner.) What helps one example and harms another cancels, and the more so the larger
    batches are: the scores depend on the batch size. Here for comparison.
    """
    del seed
    found = each_derivative(model, anatomy, batches=batches, loss=loss, context=context)
    sizes = torch.stack([of_batch.mean(0) for of_batch in found]).abs()
    return Estimate(sizes.mean(0), None, num_examples(batches))
