"""Run one scoring method, by name."""

from dataclasses import replace
from typing import Literal

import torch

from headprune.anatomy import Anatomy
from headprune.placement import not_finite
from headprune.plans import HeadScores
from headprune.scoring.catalogue import DEFAULT_METHOD, get_method
from headprune.scoring.request import Estimate, ScoreRequest

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
    training = [module for module in request.model.modules() if module.training]
    request.model.eval()
    try:
        estimate: Estimate = function(request)
    finally:
        for module in training:
            module.training = True
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
