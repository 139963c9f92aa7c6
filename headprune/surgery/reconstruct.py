"""Reconstruct output projections in closed form: heads that are kept put out, as nearly as they can, what all did. No training.

Several methods are fitted side by side; rows that nothing was fitted on say which was best, and whether any was. Biases
that a family knows and a model was built without can be added as zeros first.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.anatomy.exceptions import BIAS_SWITCHES
from headprune.anatomy.sites import Anatomy
from headprune.artefact import DEFAULT_RECONSTRUCT, FitMethod, Reconstruct, Tried
from headprune.batch import Batch
from headprune.heads import HeadId
from headprune.surgery.fit import fit
from headprune.surgery.projections import has_bias, swapped_weights, write_weights


@dataclass(frozen=True)
class AddedBiases:
    """Biases that were added.

    Args:
        switch: The setting of the config that tells of them.
        names: Their names.
        count: How many numbers they are.
    """

    switch: str
    names: tuple[str, ...]
    count: int


def add_zero_biases(model: PreTrainedModel, anatomy: Anatomy) -> AddedBiases | None:
    """Give every output projection a bias of zeros, and whatever else the family has with it; no output changes.

    Args:
        model: The model; changed in place, its config too.
        anatomy: Its anatomy, which must be looked up again afterwards: biases of queries, keys and values are cut, too.

    Returns:
        None where nothing was done: they have one, or the family knows none.
    """
    if has_bias(model, anatomy):
        return None
    for switch in BIAS_SWITCHES:
        names = _biases_with(model, switch)
        if names and {f"{site.output}.bias" for site in anatomy.sites} <= set(names):
            for name in names:
                layer = model.get_submodule(name.removesuffix(".bias"))
                weight: nn.Parameter = layer.weight  # type: ignore[assignment]
                zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
                layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
            setattr(model.config, switch, True)
            count = sum(model.get_parameter(name).numel() for name in names)
            return AddedBiases(switch, names, count)
    return None


def remove_biases(model: PreTrainedModel, added: AddedBiases) -> None:
    """Remove biases that were added."""
    for name in added.names:
        model.get_submodule(name.removesuffix(".bias")).bias = None  # type: ignore[assignment]
    setattr(model.config, added.switch, False)


def _biases_with(model: PreTrainedModel, switch: str) -> tuple[str, ...]:
    """Return the names of the biases that the model would have with a setting; none where more than that would differ."""
    if getattr(model.config, switch, None) is not False:
        return ()
    config = copy.deepcopy(model.config)
    setattr(config, switch, True)
    kind: Any = type(model)
    try:
        with quiet(), torch.device("meta"):
            other = kind._from_config(config)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return ()  # a family may refuse it: then it knows no such bias
    present, with_biases = ({name for name, _ in one.named_parameters()} for one in (model, other))
    new = tuple(name for name, _ in other.named_parameters() if name not in present)
    fits = present <= with_biases and all(
        name.endswith(".bias")
        and type(model.get_submodule(name.removesuffix(".bias"))) is nn.Linear
        for name in new
    )
    return new if fits else ()


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
    methods: Sequence[FitMethod] = RECONSTRUCT_METHODS[DEFAULT_RECONSTRUCT],
) -> Reconstruct:
    """Reconstruct the output projections of ``model``, whose heads are still there, for when ``remove`` are removed.

    Changes weights in place, and only where held-out rows find the model better for it.
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
