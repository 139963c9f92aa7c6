"""What heads put out: moments of ``z`` over the positions of the data, in one forward; and two methods without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.sites import Site
from headprune.batch import Batch, forward
from headprune.heads import SiteId
from headprune.masking import observed, places_of, real_positions
from headprune.passes import Work, each_batch, summed
from headprune.placement import input_device
from headprune.scoring.request import Estimate, ScoreRequest


def activation(request: ScoreRequest) -> Estimate:
    """Score heads by ``|| mean_t |z_h,t| ||_2``: every coordinate's mean size over positions, and the l2 norm of these.

    Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", 2024, section 2.2; of the
    aggregates that they try, the mean over all positions of the data, every position counting once.
    """
    moments = _moments(request)
    values = torch.cat([moments[site.id].size.norm(dim=1) for site in request.anatomy.sites])
    return Estimate(values, None, request.num_examples)


def fluctuation(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_d Var_t(z_h,t,d) ||W_O,h,d||^2``, ``d`` over head_dim.

    A head that puts out the same at every position can be removed: its mean fits into a bias. The scores of different layers
    aren't alike in size: normalize them, or take :func:`fluctuation_per_channel`. Where a norm stands before the output
    projection, ``z`` is what the norm reads.

    Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, eq. 5.
    """
    values = [sizes.mean(1) for sizes in _fluctuations(request)]
    return Estimate(torch.cat(values), None, request.num_examples)


def fluctuation_per_channel(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_d standard((Var_t(z_h,t,d) ||W_O,h,d||^2)^2)``, standardized over all coordinates of a layer.

    What FLAP's code does: each layer's coordinates get mean 0 and deviation 1 before they are averaged to heads, and they are
    squared before that. Layers are comparable, with no word of how much each of them matters.

    Source: An et al. 2024, section 3.3 and the code that came with it.
    """
    values = []
    for sizes in map(torch.square, _fluctuations(request)):
        spread = sizes.std() if sizes.numel() > 1 else sizes.new_zeros(())
        values.append(((sizes - sizes.mean()) / (spread if spread > 0 else 1.0)).mean(1))
    return Estimate(torch.cat(values), None, request.num_examples)


def _fluctuations(request: ScoreRequest) -> list[Float64[Tensor, "heads head_dim"]]:
    """Return ``Var_t(z) ||W_O||^2`` of every coordinate, site by site."""
    moments = _moments(request)
    return [
        moments[site.id].variance * output_weight(request.model, site).square().sum(2)
        for site in request.anatomy.sites
    ]


def output_weight(model: PreTrainedModel, site: Site) -> Float64[Tensor, "heads head_dim out"]:
    """Return ``W_O,h`` of every head of a site, on the CPU."""
    output = model.get_submodule(site.output)
    weight = output.get_parameter("weight").detach().double().cpu()
    columns = weight if isinstance(output, Conv1D) else weight.T
    by_place: Tensor = columns.unflatten(0, (-1, site.head_dim))
    places = places_of(site, len(by_place))
    return by_place if places is None else by_place[torch.tensor(places, dtype=torch.long)]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Means over positions of a site's ``z``: of its size, of itself, of its square."""

    size: Float64[Tensor, "heads head_dim"]
    mean: Float64[Tensor, "heads head_dim"]
    square: Float64[Tensor, "heads head_dim"]

    @property
    def variance(self) -> Float64[Tensor, "heads head_dim"]:
        """The variance over positions."""
        return (self.square - self.mean.square()).clamp_min(0)


@torch.no_grad()
def _moments(request: ScoreRequest) -> Mapping[SiteId, _Moments]:
    """Return the moments of every site's ``z`` over all positions that aren't padding."""
    model, sites = request.model, request.anatomy.sites
    widths = [len(site.heads) * site.head_dim for site in sites]

    def sums(batch: Batch) -> Tensor:
        batch = batch.to(input_device(model))
        with observed(model, request.anatomy) as seen:
            forward(model, batch.inputs)
        parts = [_sums(site, seen[site.id], batch) for site in sites]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    work = Work(sums, shape=lambda _batch: (4, sum(widths)), dtype=torch.float64, join=summed)
    by_batch = each_batch(request.batches, work, context=request.context, name="activations")
    by_site = torch.stack(by_batch).sum(0).split(widths, dim=1)
    return {
        site.id: _Moments(*(part[:3] / part[3].clamp_min(1)).unflatten(1, (-1, site.head_dim)))
        for site, part in zip(sites, by_site, strict=True)
    }


def _sums(site: Site, calls: Sequence[Tensor], batch: Batch) -> Float64[Tensor, "4 heads head_dim"]:
    """Return the sums over positions of ``|z|``, ``z``, ``z^2`` and 1."""
    total = torch.zeros(4, len(site.heads), site.head_dim, dtype=torch.float64)
    for z in calls:
        real = real_positions(site, z.shape[:-2], batch)
        values = (z.flatten(0, -3) if real is None else z[real]).cpu().double()
        ones = torch.ones_like(values)
        total += torch.stack(
            [values.abs().sum(0), values.sum(0), values.square().sum(0), ones.sum(0)]
        )
    return total


def magnitude(request: ScoreRequest) -> Estimate:
    """Score heads by the Frobenius norm of their columns of the output projection, ``||W_O,h||_F``."""
    norms = [
        output_weight(request.model, site).flatten(1).norm(dim=1) for site in request.anatomy.sites
    ]
    return Estimate(torch.cat(norms), None, 0)


def random(request: ScoreRequest) -> Estimate:
    """Score heads by uniform random numbers from the seed: whatever a method does, it must beat this."""
    generator = torch.Generator().manual_seed(request.seed)
    values = torch.rand(len(request.anatomy.heads), generator=generator, dtype=torch.float64)
    return Estimate(values, None, 0)
