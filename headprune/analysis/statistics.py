"""Numbers of attention weights, averaged over queries while a model runs: memory doesn't grow with the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, sqrt

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.call import AttentionCall, Vocabulary, attention_call
from headprune.analysis.catalogue import Role
from headprune.analysis.roles import Measure, Numbers
from headprune.anatomy import Anatomy, Site
from headprune.attention import WeightReader, plain_attention, weight_reader
from headprune.batch import Batch
from headprune.heads import SiteId
from headprune.passes import RunContext, Work, each_batch, summed
from headprune.placement import input_device

_SUMS = ("total", "count", "total squared", "total x count", "count squared", "examples")
"""What is kept of each head and column: sums over examples, from which a ratio and its standard error follow."""
_Z = 1.96


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
    values, low, high, baseline = [], [], [], []
    queries: list[int] = []
    examples: list[int] = []
    for site in anatomy.sites:
        of_site = sums[:, places[site.id]].T.tolist()
        heads, others = of_site[: len(site.heads)], of_site[len(site.heads) :]
        compared = max(
            (ratio for ratio, _ in map(_ratio, others) if ratio is not None), default=None
        )
        for numbers in heads:
            value, error = _ratio(numbers)
            values.append(value)
            low.append(None if value is None or error is None else value - _Z * error)
            high.append(None if value is None or error is None else value + _Z * error)
            baseline.append(None if value is None else compared)
            queries.append(round(numbers[1]))
            examples.append(round(numbers[-1]))
    lists: dict[str, Numbers] = {
        name: tuple(numbers)
        for name, numbers in zip(
            ("values", "low", "high", "baseline"), (values, low, high, baseline), strict=True
        )
    }
    return Measure(
        role=column.role.name,
        column=column.name,
        queries=tuple(queries),
        examples=tuple(examples),
        **lists,
    )


def _ratio(sums: Sequence[float]) -> tuple[float | None, float | None]:
    """Return a ratio of sums over examples, and its standard error; None where nothing counts, or there is one example."""
    total, count, squares, products, counts_squared, examples = sums
    if not count:
        return None, None
    ratio = total / count
    if isnan(ratio) or examples < 2:
        return (None if isnan(ratio) else ratio), None
    spread = max(0.0, squares - 2 * ratio * products + ratio**2 * counts_squared)
    return ratio, sqrt(spread * examples / (examples - 1)) / count
