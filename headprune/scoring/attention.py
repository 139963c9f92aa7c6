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
from headprune.batch import Batch, forward, num_examples
from headprune.errors import UnsupportedError
from headprune.heads import SiteId
from headprune.masking import places_of
from headprune.memory import Parts, halves_of_batch
from headprune.passes import RunContext, Work, each_batch, summed
from headprune.placement import input_device
from headprune.replay.rows import tensors_in
from headprune.scoring.estimate import Estimate, mean_and_error
from headprune.scoring.moments import padding_mask

NUMBERS = ("confidence", "entropy", "sink")
"""What is made of every query's weights, in one pass for all: the largest, the negative entropy, what doesn't go to the first."""


@torch.no_grad()
def mean_over_queries(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    context: RunContext,
    number: str,
) -> Estimate:
    """Return ``mean_n mean_t number(weights of query t)`` for every head, with its standard error over examples.

    Args:
        model: The model.
        anatomy: Its anatomy.
        batches: Calibration data; queries that are padding don't count.
        context: How to go over the data.
        number: Which of :data:`NUMBERS`; the others are kept, too, where a journal is.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights.
    """
    asking: dict[str, Any] = {}

    def look(batch: Batch) -> list[Tensor]:
        with _listening(model, anatomy, batch) as seen:
            forward(model, {**batch.inputs, **asking})
        return [_by_example(site, seen[site.id], batch) for site in anatomy.sites]

    def sums(batch: Batch) -> Tensor:
        by_example = torch.cat(look(batch.to(input_device(model))), dim=1)
        return torch.stack([by_example.sum(0), by_example.square().sum(0)])

    with _eager(model):
        try:
            first = batches[0].take(1).to(input_device(model))
            Parts("attention weights", halves_of_batch).run(first, look)
        except UnsupportedError:
            # Some hand them out only when they are asked, and then keep those of all layers.
            asking["output_attentions"] = True
            if "output_attentions" not in signature(model.forward).parameters:
                raise
        work = Work(
            sums,
            shape=lambda _batch: (2, len(anatomy.heads), len(NUMBERS)),
            dtype=torch.float64,
            join=summed,
        )
        found = each_batch(batches, work, context=context, name="attention weights")
    total, squares = torch.stack(found).sum(0)[..., NUMBERS.index(number)]
    return mean_and_error(total, squares, n=num_examples(batches))


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Let the model, and what it is made of, run their plain attention."""
    parts = {"": model.config} | {
        name: getattr(model.config, name)
        for name in model.config.sub_configs
        if getattr(model.config, name, None) is not None
    }
    before = {name: config._attn_implementation for name, config in parts.items()}
    if set(before.values()) <= {"eager"}:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before if len(before) > 1 else before[""])


@contextmanager
def _listening(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch
) -> Iterator[dict[SiteId, list[Float[Tensor, "rows heads queries numbers"]]]]:
    """Collect the numbers of the weights that attentions put out beside their results."""
    seen: dict[SiteId, list[Tensor]] = {site.id: [] for site in anatomy.sites}

    def listen(site: Site) -> Callable[..., None]:
        def note(_module: Any, _args: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                if _are_weights(site, tensor, rows=batch.num_rows):
                    places = places_of(site, tensor.shape[1])
                    of_heads = tensor if places is None else tensor[:, places]
                    seen[site.id].append(_numbers(of_heads.float()).cpu().double())

        return note

    with ExitStack() as hooks:
        for site in anatomy.sites:
            handle = model.get_submodule(site.path).register_forward_hook(listen(site))
            hooks.callback(handle.remove)
        yield seen
    for site in anatomy.sites:
        if site.heads and not seen[site.id]:
            raise UnsupportedError(
                f"the attention {site.id} doesn't hand out its weights",
                where=f"{type(model).__name__} ({anatomy.model_type})",
                hint="score by gradient or ablation: they need the outputs only",
            )


def _numbers(
    weights: Float[Tensor, "rows heads queries keys"],
) -> Float[Tensor, "rows heads queries numbers"]:
    """Return :data:`NUMBERS`."""
    negative_entropy = torch.special.xlogy(weights, weights).sum(-1)
    return torch.stack([weights.amax(-1), negative_entropy, 1 - weights[..., 0]], dim=-1)


def _are_weights(site: Site, tensor: Tensor, *, rows: int) -> bool:
    """Whether a tensor is [rows, heads, queries, keys], and every query's weights sum to one (or, with a sink, to less)."""
    if tensor.dim() != 4 or not tensor.is_floating_point() or tensor.shape[0] % rows:
        return False
    if tensor.shape[1] not in (len(site.heads), len(site.slots), site.num_heads):
        return False
    total = tensor.sum(-1)
    return bool((tensor >= 0).all() and (total < 1.01).all() and (total > 0).all())


def _by_example(
    site: Site, calls: Sequence[Tensor], batch: Batch
) -> Float64[Tensor, "examples heads numbers"]:
    """Return the means over an example's queries, of all of its rows, of every head."""
    found = torch.zeros(2, batch.num_examples, len(site.heads), len(NUMBERS), dtype=torch.float64)
    mask = padding_mask(site, batch)
    for values in calls:
        counted = torch.ones(values.shape[0], 1, values.shape[2], dtype=torch.float64)
        if mask is not None and tuple(mask.shape) == (values.shape[0], values.shape[2]):
            counted = mask[:, None].cpu().double()
        counted = counted[..., None]
        # Rows may have become several (windows).
        rows = batch.example_of_row.cpu().repeat_interleave(values.shape[0] // batch.num_rows)
        found[0].index_add_(0, rows, (values * counted).sum(2))
        found[1].index_add_(0, rows, counted.sum(2).expand(-1, *found.shape[2:]))
    return found[0] / found[1].clamp_min(1)
