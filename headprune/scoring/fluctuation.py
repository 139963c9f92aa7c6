"""FLAP: how much a head's output moves, as far as the output projection lets it through."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.passes import RunContext
from headprune.scoring.estimate import Estimate
from headprune.scoring.moments import moments
from headprune.scoring.output_weight import output_weight


def fluctuation(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_d Var_t(z_h,t,d) ||W_O,h,d||^2``, ``d`` over head_dim.

    A head that puts out the same at every position can go: its mean fits into a bias. The scores of different layers aren't
    alike in size: ``--normalize standard``, or :func:`fluctuation_per_channel`. Where a norm stands before the output projection,
    ``z`` is what the norm reads.

    Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, eq. 5.
    """
    del loss, seed
    found = moments(model, anatomy, batches=batches, context=context)
    values = [
        (found[site.id].variance * output_weight(model, site).square().sum(2)).mean(1)
        for site in anatomy.sites
    ]
    return Estimate(torch.cat(values), None, num_examples(batches))


def fluctuation_per_channel(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_d standard((Var_t(z_h,t,d) ||W_O,h,d||^2)^2)``, standardized over all coordinates of a layer.

    What FLAP's code does: each layer's coordinates get mean 0 and deviation 1 before they are averaged to heads, and they are
    squared before that. Layers are comparable, with no word of how much each of them matters.

    Source: An et al. 2024, section 3.3 and the code that came with it.
    """
    del loss, seed
    found = moments(model, anatomy, batches=batches, context=context)
    values = []
    for site in anatomy.sites:
        through = output_weight(model, site).square().sum(2)
        sizes = (found[site.id].variance * through).square()
        spread = sizes.std() if sizes.numel() > 1 else sizes.new_zeros(())
        values.append(((sizes - sizes.mean()) / (spread if spread > 0 else 1.0)).mean(1))
    return Estimate(torch.cat(values), None, num_examples(batches))
