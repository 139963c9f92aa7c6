"""Refit W_O in closed form: the heads that stay put out, as nearly as they can, what all heads did. No training.

Attention by attention, in the order in which they run: inputs come from the model that has lost its heads and was mended so far,
targets from the whole one. Of the output projection ``z -> z W + b``, with ``Z`` the inputs of all positions and a column of ones
for the bias,

    [W; b] = argmin || [Z, 1] [W; b] - Y ||^2 + ridge s || W - W_0 ||^2,    s = mean_d sum_t Z_td^2

The ridge pulls towards the weights that were there, so that few rows change little. Sums are kept in double precision, and
nothing is kept of the positions themselves.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward, input_device
from headprune.heads import HeadId, HeadMask
from headprune.masking import gated, places_of
from headprune.replay import losses, read_by
from headprune.scoring.moments import real_positions

RIDGES = (1e-3, 1e-2, 1e-1)


class Mend(BaseModel):
    """What mending did, measured on calibration rows that it didn't see.

    Args:
        ridge: The strength that won; None where the loss was lower without any mending, and nothing was changed.
        fitted_on: Examples that the weights were fitted on.
        held_out: Examples that decided.
        loss_cut: Their mean loss with the heads silent and nothing mended.
        losses: Their mean loss at each strength.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ridge: float | None
    fitted_on: int
    held_out: int
    loss_cut: float
    losses: dict[float, float]


def mend(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    loss: Loss,
    remove: Collection[HeadId],
) -> Mend:
    """Refit the output projections of ``model``, whose heads are still there, for the time when ``remove`` have gone.

    Changes weights in place, and only where that lowers the mean loss of ``held_out``.

    Args:
        model: The model, before the heads are cut.
        anatomy: Its anatomy.
        batches: What the weights are fitted on.
        held_out: What decides how strongly, and whether at all.
        loss: One loss per example.
        remove: The heads that will go.
    """
    mask = torch.tensor(HeadMask.without(remove, anatomy.heads).values)

    def mean_loss() -> float:
        found = losses(
            model, anatomy, batches=held_out, loss=loss, masks=mask[None], base=mask, name="mend"
        )
        return float(found.double().mean())

    before = projections(model, anatomy)
    least = loss_cut = mean_loss()
    best, won, tried = before, None, {}
    for ridge in RIDGES:
        refit(model, anatomy, batches=batches, mask=mask, ridge=ridge)
        tried[ridge] = mean_loss()
        if tried[ridge] < least:
            least, best, won = tried[ridge], projections(model, anatomy), ridge
        put_back(model, before)
    put_back(model, best)
    return Mend(
        ridge=won,
        fitted_on=sum(batch.num_examples for batch in batches),
        held_out=sum(batch.num_examples for batch in held_out),
        loss_cut=loss_cut,
        losses=tried,
    )


@torch.no_grad()
def refit(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    mask: Float[Tensor, " heads"],
    ridge: float,
) -> None:
    """Refit every output projection from the first attention on that loses a head, in place.

    Those that aren't linear in ``z`` (a norm or a function stands in between) stay as they are.
    """
    whole = projections(model, anatomy)
    reached = False
    for site in _in_order(model, anatomy, batches[0]):
        kept = mask[anatomy.columns[site.id]].bool()
        reached = reached or not bool(kept.all())
        if reached and _is_linear(model, site):
            _refit_site(model, anatomy, site, batches, mask=mask, whole=whole, ridge=ridge)


def _in_order(model: PreTrainedModel, anatomy: Anatomy, batch: Batch) -> list[Site]:
    """Return the attentions in the order in which their output projections first run; those that don't are left out."""
    ran: list[Site] = []
    with ExitStack() as hooks:
        for site in anatomy.sites:

            def note(_module: nn.Module, _args: Any, site: Site = site) -> None:
                ran.append(site)

            handle = model.get_submodule(site.output).register_forward_pre_hook(note)
            hooks.callback(handle.remove)
        forward(model, batch.to(input_device(model)).inputs)
    return list(dict.fromkeys(ran))


def _is_linear(model: PreTrainedModel, site: Site) -> bool:
    projection = model.get_submodule(site.output)
    plain = type(projection) in (nn.Linear, Conv1D) and site.called == "module"
    return plain and site.gate == site.output and bool(site.heads)


def _refit_site(
    model: PreTrainedModel,
    anatomy: Anatomy,
    site: Site,
    batches: Sequence[Batch],
    *,
    mask: Tensor,
    whole: Mapping[str, Tensor],
    ridge: float,
) -> None:
    projection = model.get_submodule(site.output)
    weight, bias = _matrix(projection), getattr(projection, "bias", None)
    old = whole[f"{site.output}.weight"]
    old = (old if isinstance(projection, Conv1D) else old.T).double()
    old_bias = whole[f"{site.output}.bias"].double() if bias is not None else None
    columns = _columns(site, mask[anatomy.columns[site.id]].bool(), width=len(old))
    columns = columns.to(old.device)
    start = old[columns]
    if old_bias is not None:
        start = torch.cat([start, old_bias[None]])
    gram = start.new_zeros(len(start), len(start))
    cross = torch.zeros_like(start)
    for batch in batches:
        batch = batch.to(input_device(model))
        with _weights(model, whole):
            full = _inputs(model, site, batch)
        with gated(model, anatomy, gates=mask.to(full.device)):
            left = _inputs(model, site, batch)[:, columns]
        wanted = full @ old if old_bias is None else full @ old + old_bias
        if old_bias is not None:
            left = torch.cat([left, left.new_ones(len(left), 1)], dim=1)
        gram += left.T @ left
        cross += left.T @ wanted
    found = _ridge(gram, cross, start, ridge=ridge, num_inputs=len(columns))
    weight[columns] = found[: len(columns)].to(weight.dtype)
    if bias is not None:
        bias.copy_(found[-1])


def _ridge(
    gram: Float64[Tensor, "inputs inputs"],
    cross: Float64[Tensor, "inputs outputs"],
    start: Float64[Tensor, "inputs outputs"],
    *,
    ridge: float,
    num_inputs: int,
) -> Float64[Tensor, "inputs outputs"]:
    """Solve ``(G + R) X = C + R X_0``; ``R`` is ``ridge`` times the mean of ``G``'s diagonal, and 0 for the bias."""
    pull = torch.zeros_like(gram.diagonal())
    if num_inputs:
        pull[:num_inputs] = ridge * gram.diagonal()[:num_inputs].mean().clamp_min(1e-12)
    solved: Tensor = torch.linalg.solve(gram + pull.diag(), cross + pull[:, None] * start)
    return solved


def _inputs(model: PreTrainedModel, site: Site, batch: Batch) -> Float64[Tensor, "positions width"]:
    """Return what a site's output projection reads at all positions that aren't padding."""
    projection = model.get_submodule(site.output)
    z = read_by(projection, lambda: forward(model, batch.inputs))
    real = real_positions(site, z.shape[:-1], batch)
    found = z.flatten(0, -2) if real is None else z[real]
    return found.double()


def _columns(site: Site, kept: Tensor, *, width: int) -> Tensor:
    """Return which of the ``width`` inputs of the output projection belong to heads that stay."""
    places = places_of(site, width // site.head_dim)
    where = torch.arange(len(site.heads)) if places is None else torch.tensor(places)
    starts = where[kept] * site.head_dim
    return (starts[:, None] + torch.arange(site.head_dim)).flatten()


def _matrix(projection: nn.Module) -> Float[Tensor, "inputs outputs"]:
    """Return a view of the weight, whatever way it lies."""
    weight = projection.get_parameter("weight").detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def projections(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Tensor]:
    """Return copies of all parameters of output projections, by name."""
    outputs = dict.fromkeys(site.output for site in anatomy.sites)
    return {
        f"{output}.{name}": parameter.detach().clone()
        for output in outputs
        for name, parameter in model.get_submodule(output).named_parameters(recurse=False)
    }


@torch.no_grad()
def put_back(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Write parameters back."""
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


@contextmanager
def _weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model have other parameters for the length of a block."""
    before = {name: model.get_parameter(name).data for name in values}
    for name, value in values.items():
        model.get_parameter(name).data = value
    try:
        yield
    finally:
        for name, data in before.items():
            model.get_parameter(name).data = data
