"""What a scoring method is given, what it returns, and how one is run by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, Loss, evaluating, num_examples
from headprune.heads import OneHead, SiteId
from headprune.passes import SILENT, RunContext
from headprune.placement import not_finite
from headprune.plans import HeadScores
from headprune.replay.losses import losses
from headprune.scoring.catalogue import DEFAULT_METHOD, get_method
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
        grams: ``[z, 1]^T [z, 1]`` over positions, in CPU memory, where it is known; a method that needs others adds them.
            None keeps none.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    batches: Sequence[Batch]
    loss: Loss
    context: RunContext = SILENT
    seed: int = 0
    statistic: Metric | None = None
    grams: dict[SiteId, Float64[Tensor, "width_and_1 width_and_1"]] | None = None

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
        one_head: What keeping only the best head of an attention costs, where a method measures it.
    """

    values: Float64[Tensor, " heads"]
    standard_errors: Float64[Tensor, " heads"] | None
    n: int
    products: Mapping[SiteId, Float64[Tensor, "of_site of_site"]] | None = None
    one_head: tuple[OneHead, ...] = ()


def mean_and_error(
    total: Float64[Tensor, " heads"], squares: Float64[Tensor, " heads"], *, n: int
) -> Estimate:
    """Return means and their standard errors (no errors for one example) from the sums over ``n`` examples."""
    mean = total / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = (squares / n - mean**2).clamp_min(0) * n / (n - 1)
    return Estimate(mean, (variance / n).sqrt(), n)


Normalize = Literal["none", "layer", "standard"]


def score(
    request: ScoreRequest, *, method: str = DEFAULT_METHOD, normalize: Normalize = "none"
) -> HeadScores:
    """Score every head of a model.

    Args:
        request: The model, its anatomy, and the data. The model is run in eval mode and left as it was.
        method: A name of the catalogue.
        normalize: ``layer`` divides the scores of each layer by their l2 norm (Michel et al. 2019, section 4.1, after
            Molchanov et al. 2017); ``standard`` makes each layer's scores have mean 0 and standard deviation 1 (An et al. 2024,
            section 3.3). Standard errors are divided alike.

    Raises:
        ConfigError: There is no such method.
        ModelError: A loss was infinite or not a number.
    """
    function = get_method(method).load()
    with evaluating(request.model):
        estimate: Estimate = function(request)
    if not bool(estimate.values.isfinite().all()):
        what = f"the {method} scores are not finite"
        raise not_finite(what, request.model, where="calibration data")
    if normalize != "none":
        estimate = _per_layer(estimate, request.anatomy, standard=normalize == "standard")
    errors, products, statistic = estimate.standard_errors, estimate.products, request.statistic
    return HeadScores(
        method=method,
        normalize=normalize,
        objective="loss" if statistic is None else "metric",
        metric=statistic and statistic.name,
        higher_is_better=statistic and statistic.higher_is_better,
        heads=request.anatomy.heads,
        values=tuple(estimate.values.tolist()),
        standard_errors=None if errors is None else tuple(errors.tolist()),
        n=estimate.n,
        one_head=estimate.one_head,
        seed=request.seed,
        products=products
        and {str(site): tuple(map(tuple, part.tolist())) for site, part in products.items()},
    )


def _per_layer(estimate: Estimate, anatomy: Anatomy, *, standard: bool) -> Estimate:
    values, norms = estimate.values.clone(), torch.ones_like(estimate.values)
    for columns in anatomy.columns.values():
        if standard:
            values[columns] -= values[columns].mean()
        norm = values[columns].std() if standard else values[columns].norm()
        norms[columns] = norm if norm > 0 else 1.0  # nan > 0 is false, too: a layer of one head
    errors = estimate.standard_errors
    return replace(
        estimate, values=values / norms, standard_errors=None if errors is None else errors / norms
    )
