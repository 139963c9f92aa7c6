"""The diagonal of the Fisher information of the gates: squares where ``gradient`` has absolute values."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.heads import SiteId
from headprune.passes import RunContext
from headprune.scoring.derivatives import each_derivative
from headprune.scoring.estimate import Estimate, mean_and_error


def fisher(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_n (d l_n / d xi_h)^2`` at ``xi = 1``.

    Of a model at a minimum, half of it is what removing the head adds to the loss, up to second order and with the Hessian
    taken for the empirical Fisher matrix. The products of two heads of an attention are kept, too: what both add together.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, eq. 6 (theirs by batch:
    :func:`fisher_per_batch`).
    """
    del seed
    found = torch.cat(each_derivative(model, anatomy, batches=batches, loss=loss, context=context))
    squares = found.square()
    mean = mean_and_error(squares.sum(0), squares.square().sum(0), n=len(found))
    return Estimate(mean.values, mean.standard_errors, mean.n, _products(found, anatomy))


def fisher_per_batch(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_b (d l_b / d xi_h)^2``, ``l_b`` the mean loss of a batch, as the code of Kwon et al. 2022 does.

    Depends on the batch size. Here for comparison.
    """
    del seed
    by_example = each_derivative(model, anatomy, batches=batches, loss=loss, context=context)
    found = torch.stack([of_batch.mean(0) for of_batch in by_example])
    return Estimate(found.square().mean(0), None, num_examples(batches), _products(found, anatomy))


def _products(found: Float64[Tensor, "samples heads"], anatomy: Anatomy) -> dict[SiteId, Tensor]:
    """Return the mean products of the derivatives of the heads of every attention."""
    own = {site: found[:, columns] for site, columns in anatomy.columns.items()}
    return {site: part.T @ part / len(part) for site, part in own.items()}
