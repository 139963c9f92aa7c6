"""The size of what a head writes: needs no data."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import Pass
from headprune.scoring.estimate import Estimate


def magnitude(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    over: Pass,
) -> Estimate:
    """Score heads by the Frobenius norm of their columns of the output projection, ``||W_O,h||_F``."""
    del batches, loss, seed, over
    norms: list[torch.Tensor] = []
    for site in anatomy.sites:
        output = model.get_submodule(site.output)
        weight = output.get_parameter("weight").detach().double().cpu()
        reads = weight if isinstance(output, Conv1D) else weight.T  # [heads * head_dim, out]
        norms.append(reads.unflatten(0, (len(site.heads), site.head_dim)).flatten(1).norm(dim=1))
    return Estimate(torch.cat(norms), None, 0)
