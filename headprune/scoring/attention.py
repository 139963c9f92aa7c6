"""Where heads look: numbers of every query's attention weights, averaged, in one forward with plain attention.

Fused kernels never hold the weights, so the model's own eager attention runs meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, forward, input_device
from headprune.errors import UnsupportedError
from headprune.heads import SiteId
from headprune.masking import places_of
from headprune.passes import Pass, each_batch
from headprune.replay.rows import tensors_in
from headprune.scoring.activations import real_positions
from headprune.scoring.derivatives import num_examples
from headprune.scoring.estimate import Estimate, mean_and_error

Summary = Callable[[Float[Tensor, "rows heads queries keys"]], Float[Tensor, "rows heads queries"]]


@torch.no_grad()
def mean_over_queries(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    over: Pass,
    name: str,
    summary: Summary,
) -> Estimate:
    """Return ``mean_n mean_t summary(weights of query t)`` for every head, with its standard error over examples.

    Args:
        model: The model.
        anatomy: Its anatomy.
        batches: Calibration data; queries that are padding don't count.
        over: How to go over the data.
        name: What is being done.
        summary: One number for every query's weights.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights.
    """

    def sums(batch: Batch) -> Tensor:
        batch = batch.to(input_device(model))
        with _weights(model, anatomy) as seen:
            forward(model, {**batch.inputs, **_asking(model)})
        by_example = torch.cat(
            [_by_example(site, seen[site.id], batch, summary) for site in anatomy.sites], dim=1
        )
        return torch.stack([by_example.sum(0), by_example.square().sum(0)])

    with _eager(model):
        found = each_batch(
            batches,
            sums,
            shape=lambda _batch: (2, len(anatomy.heads)),
            dtype=torch.float64,
            over=over,
            name=name,
        )
    total, squares = torch.stack(found).sum(0)
    return mean_and_error(total, squares, n=num_examples(batches))


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Let the model run its plain attention."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _asking(model: PreTrainedModel) -> dict[str, Any]:
    """Return the argument by which models hand out weights that they drop otherwise."""
    takes = signature(model.forward).parameters
    return {"output_attentions": True} if "output_attentions" in takes else {}


@contextmanager
def _weights(
    model: PreTrainedModel, anatomy: Anatomy
) -> Iterator[dict[SiteId, list[Float[Tensor, "rows heads queries keys"]]]]:
    """Collect the weights that attentions put out beside their results."""
    seen: dict[SiteId, list[Tensor]] = {site.id: [] for site in anatomy.sites}

    def listen(site: Site) -> Callable[..., None]:
        def note(_module: Any, _args: Any, output: Any) -> None:
            seen[site.id].extend(t for t in tensors_in(output) if _are_weights(site, t))

        return note

    with ExitStack() as hooks:
        for site in anatomy.sites:
            handle = model.get_submodule(site.path).register_forward_hook(listen(site))
            hooks.callback(handle.remove)
        yield seen
    for site in anatomy.sites:
        if site.heads and len(seen[site.id]) != 1:
            raise UnsupportedError(
                f"the attention {site.id} doesn't hand out its weights",
                where=f"{type(model).__name__} ({anatomy.model_type})",
                hint="score by gradient or ablation: they need the outputs only",
            )


def _are_weights(site: Site, tensor: Tensor) -> bool:
    """Whether a tensor is [rows, heads, queries, keys], and every query's weights sum to one (or, with a sink, to less)."""
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return False
    if tensor.shape[1] not in (len(site.heads), len(site.slots), site.num_heads):
        return False
    return bool((tensor >= 0).all() and (tensor.sum(-1) < 1.01).all())


def _by_example(
    site: Site, calls: Sequence[Tensor], batch: Batch, summary: Summary
) -> Float64[Tensor, "examples heads"]:
    """Return the mean over an example's queries, of all of its rows, of every head."""
    found = torch.zeros(2, batch.num_examples, len(site.heads), dtype=torch.float64)
    for weights in calls:
        places = places_of(site, weights.shape[1])
        of_heads = weights if places is None else weights[:, places]
        values = summary(of_heads.float()).double().cpu()
        real = real_positions(site, (weights.shape[0], weights.shape[2]), batch)
        counted = torch.ones(weights.shape[0], 1, weights.shape[2], dtype=torch.float64)
        if real is not None:
            counted = real[:, None].double().cpu()
        rows = batch.example_of_row.cpu()
        found[0].index_add_(0, rows, (values * counted).sum(2))
        found[1].index_add_(0, rows, counted.sum(2).expand(-1, len(site.heads)))
    return found[0] / found[1].clamp_min(1)
