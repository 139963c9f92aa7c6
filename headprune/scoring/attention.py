"""Methods that read where heads look: numbers of every query's attention weights, averaged, with plain attention."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headprune.anatomy.sites import Site
from headprune.attention import plain_attention, weight_reader
from headprune.batch import Batch
from headprune.errors import DataError
from headprune.heads import SiteId
from headprune.masking import padding_mask
from headprune.passes import Work, each_batch, summed
from headprune.placement import input_device
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

    def sums(batch: Batch) -> Tensor:
        seen: dict[SiteId, list[Tensor]] = {site.id: [] for site in anatomy.sites}
        read(
            on_device := batch.to(input_device(model)),
            lambda site, weights: seen[site.id].append(_numbers(weights).cpu().double()),
        )
        by_example = torch.cat(
            [_by_example(site, seen[site.id], on_device) for site in anatomy.sites], dim=1
        )
        return torch.stack([by_example.sum(0), by_example.square().sum(0)])

    with plain_attention(model):
        read = weight_reader(model, anatomy, batches[0])
        work = Work(
            sums,
            shape=lambda _batch: (2, len(anatomy.heads), len(NUMBERS)),
            dtype=torch.float64,
            join=summed,
        )
        by_batch = each_batch(batches, work, context=request.context, name="attention weights")
    total, squares = torch.stack(by_batch).sum(0)[..., NUMBERS.index(number)]
    return mean_and_error(total, squares, n=request.num_examples)


def _numbers(
    weights: Float[Tensor, "rows heads queries keys"],
) -> Float[Tensor, "rows heads queries numbers"]:
    """Return :data:`NUMBERS`."""
    negative_entropy = torch.special.xlogy(weights, weights).sum(-1)
    return torch.stack([weights.amax(-1), negative_entropy, 1 - weights[..., 0]], dim=-1)


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
