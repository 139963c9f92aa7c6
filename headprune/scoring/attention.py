"""Methods that read where heads look: numbers of every query's attention weights, averaged, in one forward with plain attention.

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
from headprune.batch import Batch, forward
from headprune.errors import DataError, UnsupportedError
from headprune.heads import SiteId
from headprune.masking import padding_mask, places_of
from headprune.passes import Parts, Work, each_batch, halves_of_batch, summed
from headprune.placement import input_device
from headprune.replay.record import tensors_in
from headprune.scoring.request import Estimate, ScoreRequest, mean_and_error

NUMBERS = ("confidence", "entropy", "sink")
"""What is made of every query's weights, in one pass for all: the largest, the negative entropy, what doesn't go to the first."""


def confidence(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n mean_t max_s a_h(t, s)``: the largest attention weight of a position, on average.

    Padding doesn't count; unlike in the paper, the end of the sentence does.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 4.
    """
    return _mean_over_queries(request, number="confidence")


def entropy(request: ScoreRequest) -> Estimate:
    """Score heads by ``- mean_n mean_t H(a_h(t, .))``, the entropy of a position's attention weights in nats.

    The sign makes heads that look everywhere, and so nowhere, the first to be removed.

    Source: Clark et al., "What Does BERT Look at?", BlackboxNLP 2019, section 3.3.
    """
    return _mean_over_queries(request, number="entropy")


def sink(request: ScoreRequest) -> Estimate:
    """Score heads by ``1 - mean_n mean_t a_h(t, 0)``: the attention that doesn't go to the first position.

    The first position must be a token: rows are padded on the right, as headprune's own are.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, section 3.1, saw the sinks.

    Raises:
        DataError: A row begins with padding.
    """
    masks = [batch.inputs.get("attention_mask") for batch in request.batches]
    if any(mask is not None and not bool(mask[:, 0].all()) for mask in masks):
        raise DataError(
            "a row begins with padding, so its first position is no token",
            where="batches",
            hint="pad on the right",
        )
    return _mean_over_queries(request, number="sink")


@torch.no_grad()
def _mean_over_queries(request: ScoreRequest, *, number: str) -> Estimate:
    """Return ``mean_n mean_t number(weights of query t)`` for every head, with its standard error over examples.

    The other :data:`NUMBERS` are kept, too, where a journal is; queries that are padding don't count.
    """
    model, anatomy, batches = request.model, request.anatomy, request.batches
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
            # Some hand them out only when they are asked, and then keep the weights of all layers.
            asking["output_attentions"] = True
            if "output_attentions" not in signature(model.forward).parameters:
                raise
        work = Work(
            sums,
            shape=lambda _batch: (2, len(anatomy.heads), len(NUMBERS)),
            dtype=torch.float64,
            join=summed,
        )
        by_batch = each_batch(batches, work, context=request.context, name="attention weights")
    total, squares = torch.stack(by_batch).sum(0)[..., NUMBERS.index(number)]
    return mean_and_error(total, squares, n=request.num_examples)


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
    sums = torch.zeros(2, batch.num_examples, len(site.heads), len(NUMBERS), dtype=torch.float64)
    mask = padding_mask(site, batch)
    for values in calls:
        counted = torch.ones(values.shape[0], 1, values.shape[2], dtype=torch.float64)
        if mask is not None and tuple(mask.shape) == (values.shape[0], values.shape[2]):
            counted = mask[:, None].cpu().double()
        counted = counted[..., None]
        # Rows may have become several (windows).
        rows = batch.example_of_row.cpu().repeat_interleave(values.shape[0] // batch.num_rows)
        sums[0].index_add_(0, rows, (values * counted).sum(2))
        sums[1].index_add_(0, rows, counted.sum(2).expand(-1, *sums.shape[2:]))
    return sums[0] / sums[1].clamp_min(1)
