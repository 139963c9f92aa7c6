"""How much each head matters: one file per method, one signature.

``method(model, anatomy, *, batches, loss, seed, over) -> Estimate``
"""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.errors import ModelError
from headprune.heads import HeadScores
from headprune.passes import IN_SILENCE, Pass
from headprune.scoring.ablation import ablation
from headprune.scoring.estimate import Estimate, Method
from headprune.scoring.gradient import gradient
from headprune.scoring.magnitude import magnitude
from headprune.scoring.racing import race_heads
from headprune.scoring.random import random

__all__ = ["METHODS", "NEED_ROWS", "Estimate", "race_heads", "score"]

METHODS: dict[str, Method] = {
    "gradient": gradient,
    "ablation": ablation,
    "magnitude": magnitude,
    "random": random,
}


NEED_ROWS = ("gradient", "ablation")
"""Methods that run the model; the others need no data."""


def score(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    method: str = "gradient",
    normalize: Literal["none", "layer"] = "none",
    seed: int = 0,
    over: Pass = IN_SILENCE,
) -> HeadScores:
    """Score every head of ``anatomy``.

    Args:
        model: The model. It is run in eval mode and left as it was.
        anatomy: Where its heads are.
        batches: Calibration data.
        loss: Maps outputs and a batch to one loss per example.
        method: A name of :data:`METHODS`.
        normalize: ``layer`` divides the scores of each layer by their l2 norm (Michel et al. 2019, section 4.1, after
            Molchanov et al. 2017); standard errors are divided alike.
        seed: For methods that draw random numbers.
        over: How to go over the data: progress, journal, processes.

    Raises:
        ModelError: A loss was infinite or not a number.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        found = METHODS[method](model, anatomy, batches=batches, loss=loss, seed=seed, over=over)
    finally:
        for module in training:
            module.training = True
    if not bool(found.values.isfinite().all()):
        raise ModelError(
            f"the {method} scores are not finite: the loss of an example overflowed or is not a number",
            where="calibration data",
            hint="look for empty or damaged rows; with --dtype float16, try bfloat16 or float32",
        )
    if normalize == "layer":
        found = _per_layer(found, anatomy)
    errors = found.standard_errors
    return HeadScores(
        method=method,
        normalize=normalize,
        heads=anatomy.heads,
        values=tuple(found.values.tolist()),
        standard_errors=None if errors is None else tuple(errors.tolist()),
        n=found.n,
        seed=seed,
    )


def _per_layer(found: Estimate, anatomy: Anatomy) -> Estimate:
    norms = torch.ones_like(found.values)
    for columns in anatomy.columns.values():
        norm = found.values[columns].norm()
        norms[columns] = norm if norm > 0 else 1.0
    errors = found.standard_errors
    return Estimate(found.values / norms, None if errors is None else errors / norms, found.n)
