"""What only one head brings: the gradient along what neither the other heads of its attention nor a bias could make up for."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward
from headprune.heads import SiteId
from headprune.masking import observed
from headprune.memory import Parts, halves_of_batch
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.scoring.derivatives import mean_over_stretches
from headprune.scoring.estimate import Estimate
from headprune.scoring.moments import real_positions

# Of the mean square of a coordinate of z: coordinates that are nearly sums of others have no weights of any size.
_RIDGE = 1e-2
_STRETCH = 32


def unique(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_n sum_s |sum_{t in s} r_h,t . d l_n / d z_h,t|``, ``r_h`` what the other heads don't tell of ``z_h``.

    ``r_h = z_h - [z_-h, 1] A_h`` with ``A_h`` the ridge regression of a head's output on the outputs of the others of its
    attention (and on a constant, where the output projection has a bias), over all positions. It is :func:`gradient` of the
    model in which the output projection is refitted after the head has gone: two heads that do the same are both cheap as long as
    one of them stays. Meant for cuts that are reconstructed, in few heads at a time (``--steps``, ``--reconstruct``).

    ``s`` are stretches of 32 positions of an example. Over a long text what a head does here makes up for what it does there, to
    first order, and few texts make a noisy mean; over a sentence a stretch is the example.

    Takes one forward more than ``gradient``, and a matrix of ``(heads * head_dim)^2`` for each attention.
    """
    del seed
    rest = remainders(model, anatomy, batches=batches, context=context)
    return mean_over_stretches(
        model,
        anatomy,
        batches=batches,
        loss=loss,
        context=context,
        name="unique",
        length=_STRETCH,
        along=rest,
    )


@torch.no_grad()
def remainders(
    model: PreTrainedModel, anatomy: Anatomy, *, batches: Sequence[Batch], context: RunContext
) -> Mapping[SiteId, tuple[Tensor, Tensor]]:
    """Return for every site ``T`` [width, width] and ``c`` [width], such that ``r = z T - c`` for all of its heads at once.

    With ``P`` the inverse of the (ridged) Gram matrix, the coordinates of head ``h`` of ``z`` less their regression on all others
    are ``z P_:h P_hh^-1``.
    """
    sums = {site.id: _nothing(model, site) for site in anatomy.sites}
    # Of every site, whose examples are in its sums: memory that runs out in a batch leaves those of some sites there.
    counted: dict[SiteId, set[int]] = {site.id: set() for site in anatomy.sites}
    parts = Parts("outputs of heads", halves_of_batch, context.notify)

    def add(batch: Batch) -> None:
        moved, examples = batch.to(input_device(model)), set(batch.indices.tolist())
        with observed(model, anatomy) as seen:
            forward(model, moved.inputs)
        for site in anatomy.sites:
            if not examples <= counted[site.id]:
                total = sums[site.id]
                total += sum(_products(site, z, moved, like=total) for z in seen[site.id])
                counted[site.id] |= examples

    share = [batches[index] for index in context.world.share(len(batches))]
    for batch in context.track(share, "outputs of heads") if context.track else share:
        parts.run(batch, add)
    return {
        site.id: _remainder(
            context.world.summed(sums.pop(site.id)), site, centred=_has_bias(model, site)
        )
        for site in anatomy.sites
    }


def _products(site: Site, z: Tensor, batch: Batch, *, like: Tensor) -> Tensor:
    """Return ``[z, 1]^T [z, 1]`` over the positions that aren't padding, where and as ``like`` is."""
    real = real_positions(site, z.shape[:-2], batch)
    flat = (z.flatten(0, -3) if real is None else z[real.to(z.device)]).flatten(1)
    flat = flat.to(like)
    with_one = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
    return with_one.T @ with_one


def _nothing(model: PreTrainedModel, site: Site) -> Tensor:
    """Return zeros where sums are kept: on the device, unless it has no double precision."""
    device = model.get_parameter(f"{site.output}.weight").device
    width = len(site.heads) * site.head_dim + 1
    where = torch.device("cpu") if device.type in ("mps", "meta") else device
    return torch.zeros(width, width, dtype=torch.float64, device=where)


def _remainder(
    sums: Float64[Tensor, "width_and_1 width_and_1"], site: Site, *, centred: bool
) -> tuple[Float[Tensor, "width width"], Float[Tensor, " width"]]:
    """Return ``T`` and ``c``; ``sums`` are of ``[z, 1]^T [z, 1]``."""
    count, width = sums[-1, -1].clamp_min(1), len(sums) - 1
    mean = sums[-1, :-1] / count if centred else sums.new_zeros(width)
    gram = sums[:-1, :-1] / count - mean.outer(mean)
    alive = gram.diagonal()[gram.diagonal() > 0]  # heads that are gone put out zeros
    scale = alive.mean() if len(alive) else gram.new_ones(())
    precision = torch.linalg.inv(gram + _RIDGE * scale * torch.eye(width).to(gram))
    turned = torch.zeros_like(precision)
    for start in range(0, width, site.head_dim):
        own = slice(start, start + site.head_dim)
        turned[:, own] = torch.linalg.solve(precision[own, own], precision[:, own], left=False)
    return turned.float(), (mean @ turned).float()


def _has_bias(model: PreTrainedModel, site: Site) -> bool:
    return getattr(model.get_submodule(site.output), "bias", None) is not None
