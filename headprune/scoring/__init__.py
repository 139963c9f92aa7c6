"""How much each head matters: one file per method, one signature.

``method(model, anatomy, *, batches, loss, seed, over) -> Estimate``
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import SILENT, RunContext
from headprune.placement import not_finite
from headprune.plans import HeadScores
from headprune.scoring.ablation import ablation
from headprune.scoring.activation import activation
from headprune.scoring.confidence import confidence
from headprune.scoring.entropy import entropy
from headprune.scoring.estimate import Estimate, Method
from headprune.scoring.fisher import fisher, fisher_per_batch
from headprune.scoring.fluctuation import fluctuation, fluctuation_per_channel
from headprune.scoring.gates import gates
from headprune.scoring.gradient import gradient, gradient_per_batch, gradient_per_token
from headprune.scoring.magnitude import magnitude
from headprune.scoring.metric import metric_drop
from headprune.scoring.racing import race_heads
from headprune.scoring.random import random
from headprune.scoring.shapley import shapley
from headprune.scoring.sink import sink
from headprune.scoring.unique import unique

__all__ = [
    "DEPEND_ON_BATCHES",
    "DIFFERENTIATE",
    "METHODS",
    "NEED_NO_ROWS",
    "Estimate",
    "metric_drop",
    "race_heads",
    "score",
]

METHODS: dict[str, Method] = {
    "gradient": gradient,
    "gradient:token": gradient_per_token,
    "gradient:batch": gradient_per_batch,
    "unique": unique,
    "fisher": fisher,
    "fisher:batch": fisher_per_batch,
    "ablation": ablation,
    "shapley": shapley,
    "gates": gates,
    "activation": activation,
    "fluctuation": fluctuation,
    "fluctuation:channel": fluctuation_per_channel,
    "confidence": confidence,
    "entropy": entropy,
    "sink": sink,
    "magnitude": magnitude,
    "random": random,
}


DIFFERENTIATE = (
    "gradient",
    "gradient:token",
    "gradient:batch",
    "unique",
    "fisher",
    "fisher:batch",
)
"""Methods that take derivatives of the loss."""

NEED_NO_ROWS = ("magnitude", "random")
"""Methods that don't run the model."""

DEPEND_ON_BATCHES = ("gradient:batch", "fisher:batch", "gates")
"""Methods whose scores are others where batches are others."""


def score(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    method: str = "gradient",
    normalize: Literal["none", "layer", "standard"] = "none",
    seed: int = 0,
    context: RunContext = SILENT,
) -> HeadScores:
    """Score every head of ``anatomy``.

    Args:
        model: The model. It is run in eval mode and left as it was.
        anatomy: Where its heads are.
        batches: Calibration data.
        loss: Maps outputs and a batch to one loss per example.
        method: A name of :data:`METHODS`.
        normalize: ``layer`` divides the scores of each layer by their l2 norm (Michel et al. 2019, section 4.1, after
            Molchanov et al. 2017); ``standard`` makes each layer's scores have mean 0 and standard deviation 1 (An et al. 2024,
            section 3.3). Standard errors are divided alike.
        seed: For methods that draw random numbers.
        context: How to go over the data: progress, journal, processes.

    Raises:
        ModelError: A loss was infinite or not a number.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        found = METHODS[method](
            model, anatomy, batches=batches, loss=loss, seed=seed, context=context
        )
    finally:
        for module in training:
            module.training = True
    if not bool(found.values.isfinite().all()):
        raise not_finite(f"the {method} scores are not finite", model, where="calibration data")
    if normalize != "none":
        found = _per_layer(found, anatomy, standard=normalize == "standard")
    errors = found.standard_errors
    return HeadScores(
        method=method,
        normalize=normalize,
        heads=anatomy.heads,
        values=tuple(found.values.tolist()),
        standard_errors=None if errors is None else tuple(errors.tolist()),
        n=found.n,
        seed=seed,
        products=found.products
        and {str(site): tuple(map(tuple, part.tolist())) for site, part in found.products.items()},
    )


def _per_layer(found: Estimate, anatomy: Anatomy, *, standard: bool) -> Estimate:
    values, norms = found.values.clone(), torch.ones_like(found.values)
    for columns in anatomy.columns.values():
        if standard:
            values[columns] -= values[columns].mean()
        norm = values[columns].std() if standard else values[columns].norm()
        norms[columns] = norm if norm > 0 else 1.0  # nan > 0 is false, too: a layer of one head
    errors = found.standard_errors
    return replace(
        found, values=values / norms, standard_errors=None if errors is None else errors / norms
    )
