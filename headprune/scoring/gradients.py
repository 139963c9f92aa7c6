"""Methods made of derivatives: how much the loss would move with a gate on each head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.heads import SiteId
from headprune.masking import observed, real_positions
from headprune.passes import Parts, halves_of_batch
from headprune.placement import input_device
from headprune.replay.record import replaced
from headprune.scoring.derivatives import each_derivative, mean_over_stretches
from headprune.scoring.request import Estimate, ScoreRequest, mean_and_error

# Of the mean square of a coordinate of z: coordinates that are nearly sums of others have no weights of any size.
_RIDGE = 1e-2
_STRETCH = 32


def gradient(request: ScoreRequest) -> Estimate:
    """Score heads by ``I_h = mean_n |d l_n / d xi_h|`` at ``xi = 1``, with ``xi_h`` a gate on the head's output.

    The absolute value is taken per **example**, as in the paper: taken per batch, or per token of a batch-mean loss, the
    ranking depends on the batch size. Every row of a batch has gates of its own, so one backward gives all examples. Weights are
    frozen meanwhile: the backward goes to activations only.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, eq. 2.
    """
    sizes = torch.cat(each_derivative(request)).abs()
    return mean_and_error(sizes.sum(0), sizes.square().sum(0), n=len(sizes))


def gradient_per_token(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n sum_t |z_h,t . d l_n / d z_h,t|``: the absolute value is taken per token, as Michel's code does.

    The code that came with the paper sums over tokens what the paper sums over examples, so that what a head does at one
    position can't make up for what it does at another.
    """
    return mean_over_stretches(request, name="gradient by token", length=None)


def gradient_per_batch(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_b |d l_b / d xi_h|``, ``l_b`` the mean loss of a batch: what most tools compute.

    (transformers v4's run_bertology and TextPruner.) What helps one example and harms another cancels, and the more so the larger
    batches are: the scores depend on the batch size. Here for comparison.
    """
    sizes = torch.stack([by_example.mean(0) for by_example in each_derivative(request)]).abs()
    return Estimate(sizes.mean(0), None, request.num_examples)


def fisher(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n (d l_n / d xi_h)^2`` at ``xi = 1``.

    Of a model at a minimum, half of it is what removing the head adds to the loss, up to second order and with the Hessian
    taken for the empirical Fisher matrix. The products of two heads of an attention are kept, too: what both add together.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, eq. 6 (theirs by batch:
    :func:`fisher_per_batch`).
    """
    slopes = torch.cat(each_derivative(request))
    squares = slopes.square()
    mean = mean_and_error(squares.sum(0), squares.square().sum(0), n=len(slopes))
    return Estimate(mean.values, mean.standard_errors, mean.n, _products(slopes, request.anatomy))


def fisher_per_batch(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_b (d l_b / d xi_h)^2``, ``l_b`` the mean loss of a batch, as the code of Kwon et al. 2022 does.

    Depends on the batch size. Here for comparison.
    """
    slopes = torch.stack([by_example.mean(0) for by_example in each_derivative(request)])
    products = _products(slopes, request.anatomy)
    return Estimate(slopes.square().mean(0), None, request.num_examples, products)


def _products(slopes: Float64[Tensor, "samples heads"], anatomy: Anatomy) -> dict[SiteId, Tensor]:
    """Return the mean products of the derivatives of the heads of every attention."""
    by_site = {site: slopes[:, columns] for site, columns in anatomy.columns.items()}
    return {site: part.T @ part / len(part) for site, part in by_site.items()}


def unique(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n sum_s |sum_{t in s} r_h,t . d l_n / d z_h,t|``, ``r_h`` what the other heads don't tell of ``z_h``.

    ``r_h = z_h - [z_-h, 1] A_h`` with ``A_h`` the ridge regression of a head's output on the outputs of the others of its
    attention (and on a constant, where the output projection has a bias), over all positions. It is :func:`gradient` of the
    model in which the output projection is refitted after the head was removed: two heads that do the same are both cheap as long
    as one of them is kept. Meant for cuts that are reconstructed, in few heads at a time.

    ``s`` are stretches of 32 positions of an example. Over a long text what a head does at one place makes up for what it does at
    another, to first order, and few texts make a noisy mean; over a sentence a stretch is the example.

    Takes one forward more than ``gradient``, and a matrix of ``(heads * head_dim)^2`` for each attention.
    """
    return mean_over_stretches(
        request, name="unique", length=_STRETCH, projections=_remainders(request)
    )


@torch.no_grad()
def _remainders(request: ScoreRequest) -> Mapping[SiteId, tuple[Tensor, Tensor]]:
    """Return for every site ``T`` [width, width] and ``c`` [width], such that ``r = z T - c`` for all of its heads at once.

    With ``P`` the inverse of the (ridged) Gram matrix, the coordinates of head ``h`` of ``z`` less their regression on all others
    are ``z P_:h P_hh^-1``.
    """
    model, anatomy = request.model, request.anatomy
    known = {} if request.grams is None else request.grams
    unknown = [site for site in anatomy.sites if site.id not in known]
    found = _grams(request, unknown) if unknown else {}
    if request.grams is not None:
        request.grams.update({site: gram.cpu() for site, gram in found.items()})
    has_bias = {
        site.id: getattr(model.get_submodule(site.output), "bias", None) is not None
        for site in anatomy.sites
    }
    return {
        site.id: _remainder(
            (found.pop(site.id) if site.id in found else known[site.id]).to(_device(request, site)),
            site,
            centred=has_bias[site.id],
        )
        for site in anatomy.sites
    }


def _grams(request: ScoreRequest, sites: Sequence[Site]) -> dict[SiteId, Tensor]:
    """Return ``[z, 1]^T [z, 1]`` of some attentions, over the positions of all batches that aren't padding."""
    model, context = request.model, request.context
    sums = {site.id: _zeros(request, site) for site in sites}
    # Of every site, whose examples are in its sums: memory that runs out in a batch leaves those of some sites there.
    counted: dict[SiteId, set[int]] = {site.id: set() for site in sites}
    parts = Parts("outputs of heads", halves_of_batch, context.notify)
    head, own = model.get_output_embeddings(), dict[nn.Module, Any]()
    # Logits aren't read, and are a fifth of a small language model's work.
    if type(head) is nn.Linear:
        own[head] = lambda states: states.new_zeros(*states.shape[:-1], head.out_features)

    def add(batch: Batch) -> None:
        moved, examples = batch.to(input_device(model)), set(batch.indices.tolist())
        with observed(model, request.anatomy) as seen, replaced(own):
            forward(model, moved.inputs)
        for site in sites:
            if not examples <= counted[site.id]:
                total = sums[site.id]
                total += sum(_gram(site, z, moved, like=total) for z in seen[site.id])
                counted[site.id] |= examples

    for _index, batch in context.shared(request.batches, "outputs of heads"):
        parts.run(batch, add)
    return {site.id: context.world.summed(sums.pop(site.id)) for site in sites}


def _gram(site: Site, z: Tensor, batch: Batch, *, like: Tensor) -> Tensor:
    """Return ``[z, 1]^T [z, 1]`` over the positions that aren't padding, on the device and in the type of ``like``."""
    real = real_positions(site, z.shape[:-2], batch)
    flat = (z.flatten(0, -3) if real is None else z[real.to(z.device)]).flatten(1)
    flat = flat.to(like)
    with_one = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
    return with_one.T @ with_one


def _zeros(request: ScoreRequest, site: Site) -> Tensor:
    """Return zeros where sums are kept."""
    width = len(site.heads) * site.head_dim + 1
    return torch.zeros(width, width, dtype=torch.float64, device=_device(request, site))


def _device(request: ScoreRequest, site: Site) -> torch.device:
    """Return where sums are kept: where the weights lie, unless that has no double precision."""
    device = request.model.get_parameter(f"{site.output}.weight").device
    return torch.device("cpu") if device.type in ("mps", "meta") else device


def _remainder(
    sums: Float64[Tensor, "width_and_1 width_and_1"], site: Site, *, centred: bool
) -> tuple[Float[Tensor, "width width"], Float[Tensor, " width"]]:
    """Return ``T`` and ``c``; ``sums`` are of ``[z, 1]^T [z, 1]``."""
    count, width = sums[-1, -1].clamp_min(1), len(sums) - 1
    mean = sums[-1, :-1] / count if centred else sums.new_zeros(width)
    gram = sums[:-1, :-1] / count - mean.outer(mean)
    alive = gram.diagonal()[gram.diagonal() > 0]  # removed heads put out zeros
    scale = alive.mean() if len(alive) else gram.new_ones(())
    precision = torch.linalg.inv(gram + _RIDGE * scale * torch.eye(width).to(gram))
    turned = torch.zeros_like(precision)
    for start in range(0, width, site.head_dim):
        own = slice(start, start + site.head_dim)
        turned[:, own] = torch.linalg.solve(precision[own, own], precision[:, own], left=False)
    return turned.float(), (mean @ turned).float()
