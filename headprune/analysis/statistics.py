"""Numbers of attention weights, averaged over queries while a model runs: memory doesn't grow with the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.call import AttentionCall, Vocabulary, attention_call
from headprune.analysis.catalogue import Role
from headprune.analysis.roles import Measure, Numbers
from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import Z_95
from headprune.attention import WeightReader, plain_attention, weight_reader
from headprune.batch import Batch
from headprune.heads import SiteId
from headprune.passes import RunContext, Work, each_batch, summed
from headprune.placement import input_device

_SUMS = ("total", "count", "total squared", "total x count", "count squared", "examples")
"""What is kept of each head and column: sums over examples, from which a ratio and its standard error follow."""


@dataclass(frozen=True)
class _Column:
    """One number of a role: its name, and the function that makes it beside others."""

    role: Role
    name: str


@torch.no_grad()
def measure_attention(
    model: PreTrainedModel,
    anatomy: Anatomy,
    roles: Sequence[Role],
    *,
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    context: RunContext,
    name: str,
) -> tuple[Measure, ...]:
    """Return the numbers of roles, averaged over all queries that count.

    A number is ``r = sum_n s_n / sum_n c_n``, with ``s_n`` the sum over the queries of an example and ``c_n`` how many of them
    count. Its interval is that of a ratio over examples, ``r +- 1.96 sqrt(N / (N - 1) sum_n (s_n - r c_n)^2) / sum_n c_n``
    (Cochran, "Sampling Techniques", 1977, section 6.4, without the correction for a finite population).

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        roles: What is measured, by functions that take an :class:`AttentionCall`.
        batches: What the model is given.
        vocabulary: What is known of its tokens.
        context: How the work runs.
        name: What is being done, for the progress bar and the journal.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights.
    """
    with plain_attention(model):
        read = weight_reader(model, anatomy, batches[0])
        first = batches[0]
        while halves := first.halves():
            first = halves[0]
        first = first.to(input_device(model))
        columns, baselines = _columns(read, roles, first, vocabulary)
        places, start = {}, 0
        for site in anatomy.sites:
            places[site.id] = slice(start, start + len(site.heads) + baselines)
            start = places[site.id].stop
        work: Work[Batch] = Work(
            lambda batch: _sums(read, places, columns, batch.to(input_device(model)), vocabulary),
            shape=lambda _batch: (len(_SUMS), len(columns), start),
            dtype=torch.float64,
            join=summed,
        )
        key = "-" + "-".join(role.name for role in roles)
        sums = torch.stack(each_batch(batches, work, context=context, name=name, key=key)).sum(0)
    return tuple(
        _measure(column, sums[:, index], anatomy, places) for index, column in enumerate(columns)
    )


def _columns(
    read: WeightReader, roles: Sequence[Role], batch: Batch, vocabulary: Vocabulary
) -> tuple[list[_Column], int]:
    """Return which numbers there are, and how many baselines follow an attention's heads, by trying one example."""
    names: dict[str, dict[str, None]] = {role.name: {} for role in roles}
    baselines = 1

    def note(site: Site, weights: Tensor) -> None:
        nonlocal baselines
        call = attention_call(site, weights, batch, vocabulary)
        for role in roles:
            numbers = role.load()(call)
            names[role.name].update(dict.fromkeys(numbers))
            widths = (values.shape[1] - len(site.heads) for values in numbers.values())
            baselines = max(baselines, *widths, 0)

    read(batch, note)
    return [_Column(role, name) for role in roles for name in names[role.name]], baselines


def _sums(
    read: WeightReader,
    places: Mapping[SiteId, slice],
    columns: Sequence[_Column],
    batch: Batch,
    vocabulary: Vocabulary,
) -> Float[Tensor, "sums columns heads"]:
    """Return the sums over a batch's examples; ``places`` are those of each attention: its heads, then the baselines."""
    width = max(place.stop for place in places.values())
    # The sum and the number of queries of every example: an attention may run several times.
    by_example = torch.zeros(2, batch.num_examples, len(columns), width, dtype=torch.float64)
    functions = {column.role.name: column.role.load() for column in columns}

    def add(site: Site, weights: Tensor) -> None:
        call = attention_call(site, weights, batch, vocabulary)
        numbers = {name: function(call) for name, function in functions.items()}
        examples = batch.example_of_row.repeat_interleave(weights.shape[0] // batch.num_rows).cpu()
        for index, column in enumerate(columns):
            if (values := numbers[column.role.name].get(column.name)) is not None:
                start = places[site.id].start
                part = by_example[:, :, index, start : start + values.shape[1]]
                part.index_add_(1, examples, _over_queries(values, call))

    read(batch, add)
    total, count = by_example
    products = (total, count, total**2, total * count, count**2, (count > 0).double())
    return torch.stack([product.sum(0) for product in products])


def _over_queries(
    values: Float[Tensor, "rows heads queries"], call: AttentionCall
) -> Float[Tensor, "two rows heads"]:
    """Return the sum over a row's queries that count, and how many they are."""
    counts = call.is_query[:, None] & ~values.isnan()
    total = values.where(counts, 0).sum(-1)
    return torch.stack([total.cpu().double(), counts.sum(-1).cpu().double()])


def _measure(
    column: _Column,
    sums: Float[Tensor, "sums heads"],
    anatomy: Anatomy,
    places: Mapping[SiteId, slice],
) -> Measure:
    """Return the means with their intervals, and the highest of the baselines."""
    values, errors = ratios(*sums)
    low, high = values - Z_95 * errors, values + Z_95 * errors
    heads: list[int] = []
    baseline: list[float] = []
    for site in anatomy.sites:
        place = places[site.id]
        after = place.start + len(site.heads)
        heads += range(place.start, after)
        compared = values[after : place.stop].nan_to_num(-inf).max().item()
        baseline += [compared if compared > -inf else nan] * len(site.heads)
    is_known = ~values[heads].isnan()
    return Measure(
        role=column.role.name,
        column=column.name,
        values=_numbers(values[heads]),
        low=_numbers(low[heads]),
        high=_numbers(high[heads]),
        baseline=_numbers(torch.tensor(baseline).double().where(is_known, nan)),
        queries=tuple(sums[_SUMS.index("count"), heads].long().tolist()),
        examples=tuple(sums[_SUMS.index("examples"), heads].long().tolist()),
    )


def _numbers(values: Float[Tensor, " heads"]) -> Numbers:
    return tuple(None if isnan(value) else value for value in values.tolist())


def ratios(
    total: Tensor,
    count: Tensor,
    squares: Tensor,
    products: Tensor,
    counts_squared: Tensor,
    examples: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return ratios of sums over examples, and their standard errors (see :func:`measure_attention`), of any shape.

    Args:
        total: The sums of ``s_n``.
        count: The sums of ``c_n``; where they are 0, the ratio is nan.
        squares: The sums of ``s_n ** 2``.
        products: The sums of ``s_n c_n``.
        counts_squared: The sums of ``c_n ** 2``.
        examples: How many examples count; where they are fewer than 2, the error is nan.
    """
    ratio = total / count
    spread = (squares - 2 * ratio * products + ratio**2 * counts_squared).clamp_min(0)
    error = (spread * examples / (examples - 1)).sqrt() / count
    return ratio, error.where(examples > 1, nan)
