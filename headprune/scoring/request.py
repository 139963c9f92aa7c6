"""What a scoring method is given, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.heads import SiteId
from headprune.passes import SILENT, RunContext
from headprune.replay import losses
from headprune.tasks.metrics import Metric


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """The one argument of every scoring method.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        batches: The calibration data; empty for methods that need no rows.
        loss: Maps outputs and a batch to one number per example. With ``statistic``, these are the model's predictions.
        context: How the work runs: progress, journal, processes.
        seed: For methods that draw random numbers.
        statistic: The metric, where importance is about the metric itself.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    batches: Sequence[Batch]
    loss: Loss
    context: RunContext = SILENT
    seed: int = 0
    statistic: Metric | None = None

    @property
    def num_examples(self) -> int:
        """How many examples the batches hold."""
        return num_examples(self.batches)

    def losses(
        self, masks: Float[Tensor, "masks heads"], *, name: str
    ) -> Float64[Tensor, "masks examples"]:
        """Return the loss of every example under every mask.

        Args:
            masks: 1 keeps a head, 0 silences it; columns are ``anatomy.heads``.
            name: What is being done, for the progress bar and the journal.
        """
        return losses(
            self.model,
            self.anatomy,
            batches=self.batches,
            loss=self.loss,
            masks=masks,
            context=self.context,
            name=name,
        ).double()


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


def mean_and_error(
    total: Float64[Tensor, " heads"], squares: Float64[Tensor, " heads"], *, n: int
) -> Estimate:
    """Return means and their standard errors (no errors for one example).

    Args:
        total: The sum over examples.
        squares: The sum of squares over examples.
        n: How many examples there are.
    """
    mean = total / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = (squares / n - mean**2).clamp_min(0) * n / (n - 1)
    return Estimate(mean, (variance / n).sqrt(), n)
