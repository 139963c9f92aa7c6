"""What mending solves for one output projection, from sums over positions: pure linear algebra, in double precision.

``z -> z W + b`` reads the heads that stay, ``Z`` [positions, inputs], and should put out ``Y``, what all heads put out before:

- ``refit``: ``[W; b] = argmin || Z W + b - Y ||^2 + ridge s || W - W_0 ||^2``
- ``scale``: ``W_h = c_h W_0,h`` with ``c = argmin || sum_h c_h Z_h W_0,h + b_0 - Y ||^2 + ridge t || c - 1 ||^2`` (the layer-wise
  rescaling of Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.3)
- ``bias``: ``W = W_0`` and ``b`` such that the mean is right, which adds the mean output of the heads that went (An et al.,
  "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, section 3.4)

``s`` and ``t`` are the mean of the diagonal of the system that is solved, so that a ridge means the same in every layer. Ridges
pull towards what was there: few rows change little.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

How = Literal["scale", "bias", "refit"]


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over positions, of inputs with a 1 appended, and of what is wanted.

    Args:
        gram: ``[Z, 1]^T [Z, 1]``.
        cross: ``[Z, 1]^T Y``.
    """

    gram: Float64[Tensor, "inputs_and_1 inputs_and_1"]
    cross: Float64[Tensor, "inputs_and_1 outputs"]

    def plus(
        self, z: Float64[Tensor, "positions inputs"], wanted: Float64[Tensor, "positions outputs"]
    ) -> "Sums":
        """Return the sums with some more positions."""
        with_one = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        return Sums(self.gram + with_one.T @ with_one, self.cross + with_one.T @ wanted)


def no_sums(inputs: int, outputs: int, *, device: torch.device) -> Sums:
    """Return the sums over no positions."""
    zeros = torch.zeros(inputs + 1, inputs + 1 + outputs, dtype=torch.float64, device=device)
    return Sums(zeros[:, : inputs + 1].clone(), zeros[:, inputs + 1 :].clone())


def solve(
    sums: Sums,
    weight: Float64[Tensor, "inputs outputs"],
    bias: Float64[Tensor, " outputs"] | None,
    *,
    how: How,
    ridge: float,
    head_dim: int,
) -> tuple[Float64[Tensor, "inputs outputs"], Float64[Tensor, " outputs"] | None]:
    """Return a new weight and, where there was one, a new bias.

    Args:
        sums: Of the positions.
        weight: ``W_0``, of the inputs that stay.
        bias: ``b_0``; where there is none, none is made, and ``bias`` changes nothing.
        how: What is solved.
        ridge: How strongly it is held to what was there; ``bias`` has none.
        head_dim: Inputs of a head.
    """
    if how == "bias":
        return weight, None if bias is None else _mean_left(sums, weight)
    if how == "scale":
        return _scaled(sums, weight, bias, ridge=ridge, head_dim=head_dim), bias
    if bias is None:
        return _ridge(sums.gram[:-1, :-1], sums.cross[:-1], weight, ridge=ridge), None
    start = torch.cat([weight, bias[None]])
    found = _ridge(sums.gram, sums.cross, start, ridge=ridge, free=1)
    return found[:-1], found[-1]


def _ridge(gram: Tensor, cross: Tensor, start: Tensor, *, ridge: float, free: int = 0) -> Tensor:
    """Solve ``(G + R) X = C + R X_0``; ``R`` is ``ridge`` times the mean of ``G``'s diagonal, 0 in the last ``free`` rows."""
    held = len(start) - free
    pull = torch.zeros_like(gram.diagonal())
    if held:
        pull[:held] = ridge * gram.diagonal()[:held].mean().clamp_min(1e-12)
    solved: Tensor = torch.linalg.solve(gram + pull.diag(), cross + pull[:, None] * start)
    return solved


def _mean_left(sums: Sums, weight: Tensor) -> Tensor:
    """Return ``mean(Y) - mean(Z) W``; the last row of the sums are means, but for the count in its corner."""
    left: Tensor = (sums.cross[-1] - sums.gram[-1, :-1] @ weight) / sums.gram[-1, -1]
    return left


def _scaled(
    sums: Sums, weight: Tensor, bias: Tensor | None, *, ridge: float, head_dim: int
) -> Tensor:
    """Return ``W_0`` with every head's rows multiplied by its factor."""
    if not len(weight):
        return weight
    by_head = (-1, head_dim)
    products = (sums.gram[:-1, :-1] * (weight @ weight.T)).unflatten(0, by_head)
    gram = products.unflatten(2, by_head).sum((1, 3))
    wanted = sums.cross[:-1]
    if bias is not None:
        wanted = wanted - sums.gram[:-1, -1:] * bias
    cross = (wanted * weight).unflatten(0, by_head).sum((1, 2))
    factors = _ridge(gram, cross[:, None], torch.ones_like(cross)[:, None], ridge=ridge)
    scaled: Tensor = (weight.unflatten(0, by_head) * factors[:, :, None]).flatten(0, 1)
    return scaled
