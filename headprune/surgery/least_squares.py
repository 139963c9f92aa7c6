"""What reconstruction solves for one output projection, from sums over positions: pure linear algebra, in double precision.

``z -> z W + b`` reads the heads that are kept, ``Z`` [positions, inputs], and should put out ``Y``, what all heads put out:

- ``refit``: ``[W; b] = argmin || Z W + b - Y ||^2 + ridge s || W - W_0 ||^2``
- ``scale``: ``W_h = c_h W_0,h`` with ``c = argmin || sum_h c_h Z_h W_0,h + b_0 - Y ||^2 + ridge t || c - 1 ||^2`` (the layer-wise
  rescaling of Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.3)
- ``bias``: ``W = W_0`` and ``b`` such that the mean is right, which adds the mean output of the removed heads (An et al.,
  "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, section 3.4)

``s`` and ``t`` are the mean of the diagonal of the system that is solved, so that a ridge means the same in every layer. Ridges
pull towards what was there: few rows change little. How strongly, is found for each projection by cross-validation: the examples
are dealt into :data:`FOLDS` parts, and the ridge is taken whose solutions on all parts but one err least on that one (Stone,
"Cross-Validatory Choice and Assessment of Statistical Predictions", 1974). All that this needs are the sums of each part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import isfinite
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headprune.artefact import FitMethod

FOLDS = 4
_OUTPUTS = 128
"""From so many outputs on, evenly spread ones choose the ridge: each is a regression of its own, and all have the same ridge."""
RIDGES: dict[FitMethod, tuple[float, ...]] = {
    "scale": (0.001, 0.01, 0.1, 1.0),
    "bias": (),
    "refit": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
}
"""What is tried."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over positions, of inputs with a 1 appended, and of targets.

    Args:
        gram: ``[Z, 1]^T [Z, 1]``.
        cross: ``[Z, 1]^T Y``.
    """

    gram: Float64[Tensor, "inputs_and_1 inputs_and_1"]
    cross: Float64[Tensor, "inputs_and_1 outputs"]

    def plus(
        self,
        z: Float[Tensor, "positions inputs"],
        target: Float[Tensor, "positions outputs"],
        weights: Float[Tensor, " positions"] | None = None,
    ) -> "Sums":
        """Return the sums with some more positions, each counted as often as ``weights`` say (None: once)."""
        z, target = z.to(self.gram), target.to(self.cross)
        with_one = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        if weights is not None:
            root = weights.to(self.gram).sqrt()[:, None]
            with_one, target = with_one * root, target * root
        return Sums(self.gram + with_one.T @ with_one, self.cross + with_one.T @ target)

    def at(self, outputs: slice) -> "Sums":
        """Return the sums of some of the outputs."""
        return Sums(self.gram, self.cross[:, outputs])

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over the positions of both."""
        return Sums(self.gram + other.gram, self.cross + other.cross)

    def __sub__(self, other: "Sums") -> "Sums":
        """Return the sums over the positions of one that aren't in the other."""
        return Sums(self.gram - other.gram, self.cross - other.cross)


class Solved(NamedTuple):
    """A new weight and, where there was one, a new bias.

    Args:
        weight: ``W``.
        bias: ``b``.
        ridge: The ridge that was best, or the only one; None where the method has none.
    """

    weight: Float64[Tensor, "inputs outputs"]
    bias: Float64[Tensor, " outputs"] | None
    ridge: float | None = None


def no_sums(inputs: int, outputs: int, *, device: torch.device) -> Sums:
    """Return the sums over no positions."""
    zeros = torch.zeros(inputs + 1, inputs + 1 + outputs, dtype=torch.float64, device=device)
    return Sums(zeros[:, : inputs + 1].clone(), zeros[:, inputs + 1 :].clone())


def sum_of(folds: Sequence[Sums]) -> Sums:
    """Return the sums over the positions of all parts."""
    return reduce(Sums.__add__, folds)


def solve(
    folds: Sequence[Sums],
    weight: Float64[Tensor, "inputs outputs"],
    bias: Float64[Tensor, " outputs"] | None,
    *,
    method: FitMethod,
    head_dim: int,
    ridges: Sequence[float] | None = None,
) -> Solved:
    """Return what is best over all folds.

    Args:
        folds: Sums over the positions of each part of the examples; a part may be empty.
        weight: ``W_0``, of the inputs that are kept.
        bias: ``b_0``; where there is none, none is made, and ``bias`` changes nothing.
        method: What is solved.
        head_dim: Inputs of a head.
        ridges: Those to choose from, if not :data:`RIDGES`; ``bias`` has none.
    """
    ridges = RIDGES[method] if ridges is None else ridges
    every = sum_of(folds)
    if method == "bias":
        return Solved(weight, None if bias is None else _mean_rest(every, weight))
    solver = _refitted if method == "refit" else partial(_scaled, head_dim=head_dim)
    parts = [fold for fold in folds if float(fold.gram[-1, -1])]
    ridge = ridges[0]
    if len(ridges) > 1 and len(parts) > 1:
        some = slice(None, None, max(1, weight.shape[1] // _OUTPUTS) if method == "refit" else 1)
        start = weight[:, some], None if bias is None else bias[some]
        errors = [
            sum(
                _error(part.at(some), *solver((every - part).at(some), *start, ridge=tried))
                for part in parts
            )
            for tried in ridges
        ]
        known = [error for error in errors if isfinite(error)]
        ridge = ridges[errors.index(min(known))] if len(known) == len(errors) else max(ridges)
    elif len(ridges) > 1:
        ridge = max(ridges)  # of one example nothing can be learned that another could confirm
    return Solved(*solver(every, weight, bias, ridge=ridge), ridge)


_Solution: TypeAlias = tuple[Tensor, Tensor | None]


def _error(sums: Sums, weight: Tensor, bias: Tensor | None) -> float:
    """Return ``|| Z W + b - Y ||^2 - || Y ||^2``."""
    whole = torch.cat(
        [weight, weight.new_zeros(1, weight.shape[1]) if bias is None else bias[None]]
    )
    return float(((sums.gram @ whole - 2 * sums.cross) * whole).sum())


def _refitted(sums: Sums, weight: Tensor, bias: Tensor | None, *, ridge: float) -> _Solution:
    if bias is None:
        return _ridge(sums.gram[:-1, :-1], sums.cross[:-1], weight, ridge=ridge), None
    both = _ridge(sums.gram, sums.cross, torch.cat([weight, bias[None]]), ridge=ridge, free=1)
    return both[:-1], both[-1]


def _ridge(gram: Tensor, cross: Tensor, start: Tensor, *, ridge: float, free: int = 0) -> Tensor:
    """Solve ``(G + R) X = C + R X_0``; ``R`` is ``ridge`` times the mean of ``G``'s diagonal, 0 in the last ``free`` rows."""
    held = len(start) - free
    pull = torch.zeros_like(gram.diagonal())
    if held:
        pull[:held] = ridge * gram.diagonal()[:held].mean().clamp_min(1e-12)
    system, wanted = gram + pull.diag(), cross + pull[:, None] * start
    factor, failed = torch.linalg.cholesky_ex(system)
    solved: Tensor = torch.linalg.solve(system, wanted) if failed else wanted.cholesky_solve(factor)
    return solved


def _mean_rest(sums: Sums, weight: Tensor) -> Tensor:
    """Return ``mean(Y) - mean(Z) W``; the last row of the sums are means, but for the count in its corner."""
    rest: Tensor = (sums.cross[-1] - sums.gram[-1, :-1] @ weight) / sums.gram[-1, -1]
    return rest


def _scaled(
    sums: Sums, weight: Tensor, bias: Tensor | None, *, ridge: float, head_dim: int
) -> _Solution:
    """Return ``W_0`` with every head's rows multiplied by its factor, and ``b_0``."""
    if not len(weight):
        return weight, bias
    by_head = (-1, head_dim)
    products = (sums.gram[:-1, :-1] * (weight @ weight.T)).unflatten(0, by_head)
    gram = products.unflatten(2, by_head).sum((1, 3))
    targets = sums.cross[:-1]
    if bias is not None:
        targets = targets - sums.gram[:-1, -1:] * bias
    cross = (targets * weight).unflatten(0, by_head).sum((1, 2))
    factors = _ridge(gram, cross[:, None], torch.ones_like(cross)[:, None], ridge=ridge)
    return (weight.unflatten(0, by_head) * factors[:, :, None]).flatten(0, 1), bias
