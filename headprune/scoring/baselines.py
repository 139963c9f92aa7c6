"""Methods that need no data: the size of what a head writes, and a seeded control."""

import torch

from headprune.scoring.activations import output_weight
from headprune.scoring.request import Estimate, ScoreRequest


def magnitude(request: ScoreRequest) -> Estimate:
    """Score heads by the Frobenius norm of their columns of the output projection, ``||W_O,h||_F``."""
    norms = [
        output_weight(request.model, site).flatten(1).norm(dim=1) for site in request.anatomy.sites
    ]
    return Estimate(torch.cat(norms), None, 0)


def random(request: ScoreRequest) -> Estimate:
    """Score heads by uniform random numbers from the seed: whatever a method does, it must beat this."""
    generator = torch.Generator().manual_seed(request.seed)
    values = torch.rand(len(request.anatomy.heads), generator=generator, dtype=torch.float64)
    return Estimate(values, None, 0)
