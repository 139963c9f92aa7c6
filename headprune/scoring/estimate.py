"""What a scoring method returns, and the signature they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.heads import SiteId
from headprune.passes import RunContext


@dataclass(frozen=True, eq=False)
class Estimate:
    """One number per head, in the order of ``anatomy.heads``.

    Args:
        values: The scores; higher matters more.
        standard_errors: Of the scores, where they are means over examples.
        n: Number of examples they come from.
        products: Mean products of the derivatives of two heads of an attention, where a method has them.
    """

    values: Float64[Tensor, " heads"]
    standard_errors: Float64[Tensor, " heads"] | None
    n: int
    products: Mapping[SiteId, Float64[Tensor, "of_site of_site"]] | None = None


@runtime_checkable
class Method(Protocol):
    """The one signature of all methods."""

    def __call__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        *,
        batches: Sequence[Batch],
        loss: Loss,
        seed: int,
        context: RunContext,
    ) -> Estimate:
        """Score every head."""


def mean_and_error(
    total: Float64[Tensor, " heads"], squares: Float64[Tensor, " heads"], *, n: int
) -> Estimate:
    """Return means and their standard errors from sums and sums of squares over ``n`` examples (no errors for one)."""
    mean = total / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = (squares / n - mean**2).clamp_min(0) * n / (n - 1)
    return Estimate(mean, (variance / n).sqrt(), n)
