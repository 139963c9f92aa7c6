"""The hard concrete distribution: numbers from 0 to 1 that are exactly 0 or 1 with some probability, and have a gradient.

Source: Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, section 2.2.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

TEMPERATURE = 0.33
"""beta: the lower, the nearer samples are to 0 or 1. Voita et al. 2019 take the paper's constants, this and the next two."""
LOW, HIGH = -0.1, 1.1
"""gamma and zeta: the interval that samples are stretched to before what is outside of [0, 1] is clamped."""


def sample(
    log_alpha: Float64[Tensor, " heads"], noise: Float64[Tensor, "examples heads"]
) -> Float64[Tensor, "examples heads"]:
    """Return gates ``clamp(s (zeta - gamma) + gamma, 0, 1)`` with ``s = sigmoid((log u - log(1 - u) + log_alpha) / beta)``.

    Differentiable in ``log_alpha`` where a gate is strictly between 0 and 1.

    Args:
        log_alpha: The distributions' locations.
        noise: The ``u``, uniform between 0 and 1.
    """
    return _stretched(torch.sigmoid((torch.logit(noise) + log_alpha) / TEMPERATURE))


def open_probability(log_alpha: Float64[Tensor, " heads"]) -> Float64[Tensor, " heads"]:
    """Return ``P(gate != 0) = sigmoid(log_alpha - beta log(-gamma / zeta))``."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def settled(log_alpha: Float64[Tensor, " heads"]) -> Float64[Tensor, " heads"]:
    """Return the gates without noise, ``clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)``: 0 where a head is to go.

    >>> settled(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)).tolist()
    [0.0, 0.5, 1.0]
    """
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(values: Tensor) -> Tensor:
    return (values * (HIGH - LOW) + LOW).clamp(0, 1)
