"""Reconstruct output projections in closed form: heads that are kept put out, as nearly as they can, what all did. No training.

Several methods are fitted side by side; rows that nothing was fitted on say which was best, and whether any was.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.heads import HeadId
from headprune.measured import FitMethod, Reconstruct, Tried
from headprune.surgery.fit import fit, has_bias, swapped_weights, write_weights

RECONSTRUCT_METHODS: dict[str, tuple[FitMethod, ...]] = {
    "best": ("bias", "refit"),
    "scale": ("scale",),
    "bias": ("bias",),
    "refit": ("refit",),
}
"""What `reconstruct` may be, and which methods are then tried."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What held-out rows say of a model.

    Args:
        value: What users read: the metric, or the loss.
        loss: The mean loss.
        predictions: What it is compared by.
    """

    value: float
    loss: float
    predictions: Any = None


@dataclass(frozen=True)
class HeldOut:
    """Rows that nothing was fitted on, which select a method.

    Args:
        measure: ``measure(mask)`` of the model as it stands, under a head mask.
        best: ``best(measured)``: the index of the best; the first is the model that isn't reconstructed.
        name: What ``value`` is.
        examples: How many there are.
    """

    measure: Callable[[Float[Tensor, " heads"]], Measured]
    best: Callable[[Sequence[Measured]], int]
    name: str
    examples: int


def reconstruct(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    held_out: HeldOut,
    remove: Collection[HeadId],
    methods: Sequence[FitMethod] = RECONSTRUCT_METHODS["best"],
) -> Reconstruct:
    """Reconstruct the output projections of ``model``, whose heads are still there, for when ``remove`` are removed.

    Changes weights in place, and only where held-out rows find the model better for it.

    Args:
        model: The model, before the heads are cut.
        anatomy: Its anatomy.
        batches: What the weights are fitted on.
        held_out: What selects a method, or none.
        remove: The heads that will be removed.
        methods: What is tried; the bias only where there is one.
    """
    if not has_bias(model, anatomy):
        methods = [method for method in methods if method != "bias"]
    mask = anatomy.mask(remove)
    measured = [held_out.measure(mask)]
    fits = fit(model, anatomy, batches=batches, mask=mask, methods=methods) if methods else []
    for reconstructed in fits:
        with swapped_weights(model, reconstructed.weights):
            measured.append(held_out.measure(mask))
    best = held_out.best(measured)
    if best:
        write_weights(model, fits[best - 1].weights)
    tried = tuple(
        Tried(method=method, ridges=reconstructed.ridges, value=one.value)
        for method, reconstructed, one in zip(methods, fits, measured[1:], strict=True)
    )
    return Reconstruct(
        kept=tried[best - 1] if best else None,
        fitted_on=sum(batch.num_examples for batch in batches),
        held_out=held_out.examples,
        judged_by=held_out.name,
        without_reconstruction=measured[0].value,
        tried=tried,
    )
