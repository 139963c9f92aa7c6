"""What the loss, or the metric itself, does when heads are silent: one, all others of its attention, or more and more of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from headprune.heads import OneHead
from headprune.scoring.request import Estimate, ScoreRequest, mean_and_error
from headprune.tasks.metrics import Compute, Metric, Numbers, bootstrap

_RESAMPLES = 200
_FEWEST_RESAMPLES = 20


def ablation(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n [l_n(without h) - l_n]``; the standard error is that of the paired differences.

    The exact effect of removing one head, and no more: heads that can replace each other all look unimportant, so it is an
    honest measurement and a poor order for removing many (Michel et al. 2019, section 3). With a metric as the objective, the
    score is how much worse the metric is without the head.
    """
    heads = len(request.anatomy.heads)
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)])
    measured = _Measured.under(request, masks, name="ablation")
    return measured.cost(torch.arange(1, heads + 1), torch.zeros(heads, dtype=torch.long))


def only(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_n [l_n(no head in its attention) - l_n(h alone in its attention)]``: what it does alone.

    All other attentions keep all their heads. Within an attention, the order is that of the losses with one head (Michel et al.
    2019, section 3.3); they are compared with the loss without any, so that a head of an attention that does nothing has the
    score 0. With a metric, the score is how much better the metric is with the head.

    ``one_head`` has for each attention the head that does best alone, and what keeping only it costs. The head is chosen on the
    1st, 3rd, ... example, and the cost is measured on the others.
    """
    columns = request.anatomy.columns
    sites, heads = len(columns), len(request.anatomy.heads)
    of_site = torch.zeros(sites, heads)
    for place, slice_ in enumerate(columns.values()):
        of_site[place, slice_] = 1
    site_of = of_site.argmax(0)
    alone = 1 - of_site[site_of] + torch.eye(heads)
    masks = torch.cat([torch.ones(1, heads), 1 - of_site, alone])
    measured = _Measured.under(request, masks, name="only")
    worse, better = 1 + site_of, torch.arange(heads) + 1 + sites
    return replace(measured.cost(worse, better), one_head=_best_alone(measured, worse, better))


_FEWEST_TO_DIVIDE = 4


def _best_alone(
    measured: "_Measured", none: Int[Tensor, " heads"], alone: Int[Tensor, " heads"]
) -> tuple[OneHead, ...]:
    """Return the best head of each attention, chosen on one half of the examples and measured on the other.

    Args:
        measured: What was measured; its first mask keeps all heads.
        none: For each head, the mask without any head in its attention.
        alone: For each head, the mask in which it is the only one.
    """
    if measured.values.shape[1] < _FEWEST_TO_DIVIDE:
        return ()
    anatomy, reporting = measured.request.anatomy, measured.part(slice(1, None, 2))
    chosen = measured.part(slice(0, None, 2)).cost(none, alone).values
    best = [part.start + int(chosen[part].argmax()) for part in anatomy.columns.values()]
    masks = torch.cat([alone[best], none[best]])
    costs = reporting.cost(masks, torch.zeros_like(masks))
    errors = costs.standard_errors
    return tuple(
        OneHead(
            head=anatomy.heads[head],
            cost=costs.values[place].item(),
            standard_error=None if errors is None else errors[place].item(),
            cost_of_none=costs.values[place + len(best)].item(),
            n=costs.n,
        )
        for place, head in enumerate(best)
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """What was measured under several masks.

    Args:
        request: What was asked.
        values: The losses; where a metric is the objective, the predictions.
        references: What predictions are compared with.
    """

    request: ScoreRequest
    values: Float64[Tensor, "masks examples"]
    references: Numbers

    @classmethod
    def under(
        cls, request: ScoreRequest, masks: Float[Tensor, "masks heads"], *, name: str
    ) -> "_Measured":
        """Measure under ``masks``; ``name`` is what is being done."""
        values = request.losses(masks, name=f"{name}-metric" if request.statistic else name)
        references = np.empty(values.shape[1])
        if request.statistic is not None:
            for batch in request.batches:
                references[batch.indices.numpy()] = batch.targets.double().numpy()
        return cls(request, values, references)

    def part(self, examples: slice) -> "_Measured":
        """Return what was measured on some of the examples."""
        return replace(self, values=self.values[:, examples], references=self.references[examples])

    def cost(self, worse: Int[Tensor, " costs"], better: Int[Tensor, " costs"]) -> Estimate:
        """Return how much worse it is under some masks than under others; both are indices of masks."""
        if self.request.statistic is not None:
            return self._metric_drop(self.request.statistic, worse.numpy(), better.numpy())
        differences = self.values[worse] - self.values[better]
        return mean_and_error(
            differences.sum(1), differences.square().sum(1), n=differences.shape[1]
        )

    def _metric_drop(self, metric: Metric, worse: Any, better: Any) -> Estimate:
        """Return how much worse the metric is; standard errors are by the bootstrap over examples (Efron 1979)."""
        by_mask, references = self.values.numpy(), self.references
        sign = 1 if metric.higher_is_better else -1

        def drops(rows: Any, compute: Compute) -> Numbers:
            values = np.array([compute(one[rows], references[rows]) for one in by_mask])
            found: Numbers = sign * (values[better] - values[worse])
            return found

        start = perf_counter()
        whole = torch.from_numpy(drops(slice(None), metric.compute))
        count = metric.num_resamples(
            perf_counter() - start, largest=_RESAMPLES, smallest=_FEWEST_RESAMPLES
        )
        resampled = bootstrap(
            lambda rows: drops(rows, metric.or_nan),
            len(references),
            seed=self.request.seed,
            resamples=count,
        )
        spread = np.nanstd(resampled, axis=0, ddof=1)
        return Estimate(whole, torch.from_numpy(spread), len(references))


_ORDERS = 16
_AT_ONCE = 32
# Of what removing all heads costs: nearer to that, the rest of an order is taken to cost nothing.
_TOLERANCE = 0.01


def shapley(request: ScoreRequest) -> Estimate:
    """Score heads by ``mean_pi [l(without pi up to h) - l(without pi before h)]`` over 16 random orders ``pi`` of removal.

    ``l`` is the mean loss of the data. Unlike leaving one out, it sees heads that stand in for each other. An order ends early
    where the loss has come near that of a model without heads. The standard error is over the orders, not over examples; the
    cost is up to 16 forwards per head.

    Source: Ghorbani, Zou, "Data Shapley", ICML 2019, algorithm 1 (truncated Monte Carlo), for heads in place of data.
    """
    heads = len(request.anatomy.heads)
    generator = torch.Generator().manual_seed(request.seed)
    orders = [torch.randperm(heads, generator=generator) for _ in range(_ORDERS)]
    ends = torch.stack([torch.ones(heads), torch.zeros(heads)])
    full, empty = request.losses(ends, name="shapley").mean(1)
    near = _TOLERANCE * (empty - full).abs()
    costs = torch.zeros(_ORDERS, heads, dtype=torch.float64)
    for index, order in enumerate(orders):
        last = full
        for start in range(0, heads, _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            masks = _without(order, range(start + 1, start + len(part) + 1))
            losses = request.losses(masks, name=f"shapley {index + 1} of {_ORDERS}").mean(1)
            costs[index, part] = losses.diff(prepend=last[None])
            last = losses[-1]
            if (last - empty).abs() < near:
                break
    error = costs.std(0) / _ORDERS**0.5
    return Estimate(costs.mean(0), error, request.num_examples)


def _without(order: Tensor, counts: Sequence[int]) -> Tensor:
    """Return masks without the first so many heads of an order."""
    masks = torch.ones(len(counts), len(order))
    for mask, count in zip(masks, counts, strict=True):
        mask[order[:count]] = 0
    return masks
