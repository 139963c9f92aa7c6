"""Fit the output projections of a model that loses heads, attention by attention, in the order in which they run.

Inputs come from the model that has lost its heads and was reconstructed so far, targets from the whole one. ``refit`` aims at the
whole model's residual stream where an attention's output is added to it (:mod:`~headprune.surgery.residual`): with ``y`` that
output, ``r`` the stream without it and ``c`` the factors it is added with, at ``c y + r_whole - r_pruned``, every position
divided by the mean square of ``c y + r_whole``, as the norm that reads it will. So later attentions make up for what earlier
ones left. The other methods aim at ``y``.

Several methods (see :mod:`~headprune.surgery.least_squares`) walk through the model side by side: the whole model costs a
forward, and so does every method. What is kept of the positions is their state at the block that is being reconstructed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import FitMethod
from headprune.batch import Batch
from headprune.heads import SiteId
from headprune.masking import gated, real_positions, row_of_position
from headprune.passes import Parts
from headprune.placement import input_device
from headprune.replay.record import Call
from headprune.replay.resume import (
    CompletedCalls,
    advance_through,
    block_or_attention,
    in_order,
    read_last_only,
    without_values,
)
from headprune.surgery.least_squares import FOLDS, RIDGES, no_sums, solve, sum_of
from headprune.surgery.projections import (
    Read,
    at_least_single,
    columns_of,
    is_linear,
    of_all_heads,
    projection_weights,
    read,
    swapped_weights,
)
from headprune.surgery.residual import ResidualSum, residual_sums

_POSITIONS = 64
"""About so many are enough to ask the model where its stream is."""
_SMALLEST_SQUARE = 1e-6
"""The smallest mean square that a position is divided by."""


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What one method came to.

    Args:
        weights: The parameters of all output projections, by name.
        ridges: By the name of the projection, how strongly it was held to what was there.
        unchanged: Attentions that run before any head is lost.
        grams: Of those that were fitted to their own output alone, ``[z, 1]^T [z, 1]`` over all positions, in CPU memory.
    """

    weights: dict[str, Tensor]
    ridges: dict[str, float]
    unchanged: frozenset[SiteId]
    grams: dict[SiteId, Float64[Tensor, "width_and_1 width_and_1"]]


@torch.no_grad()
def fit(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    mask: Float[Tensor, " heads"],
    methods: Sequence[FitMethod],
    ridges: Sequence[float] | None = None,
    to_stream: bool = True,
) -> list[Reconstructed]:
    """Return for every method the output projections, reconstructed from the first attention on that loses a head.

    ``to_stream=False`` lets ``refit`` aim at ``y``, too. Where memory runs out, all of it is done again with smaller batches.

    Those that aren't linear in ``z`` (a norm or a function stands in between), and those that run more than once a forward, stay
    as they are.

    Raises:
        MemoryLimitError: Memory ran out with one example a batch.
    """
    parts = Parts[Sequence[Batch]]("reconstruction", _with_halves)
    run = partial(
        _fit, model, anatomy, mask=mask, methods=methods, ridges=ridges, to_stream=to_stream
    )
    return parts.largest(batches, run)[1]


def _with_halves(batches: Sequence[Batch]) -> Sequence[Sequence[Batch]]:
    """Return the same batches in halves, in one list; no list where none can be halved."""
    smaller = [half for batch in batches for half in (batch.halves() or (batch,))]
    return [smaller] if len(smaller) > len(batches) else []


def _fit(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batches: Sequence[Batch],
    *,
    mask: Float[Tensor, " heads"],
    methods: Sequence[FitMethod],
    ridges: Sequence[float] | None,
    to_stream: bool,
) -> list[Reconstructed]:
    longest = max(batches, key=lambda batch: batch.num_tokens / batch.num_rows)
    few = longest.take(-(-_POSITIONS * longest.num_rows // longest.num_tokens))
    few = few.to(input_device(model))
    sums = residual_sums(model, anatomy, few) if to_stream and "refit" in methods else {}
    order = in_order(model, anatomy, few)
    last_only = read_last_only(model, anatomy, few, order=order)
    walk = _Walk(model, anatomy, batches, mask, sums, to_stream, last_only)
    weights = projection_weights(model, anatomy)
    whole = _Walker(None, (), weights, [()] * len(batches))
    walkers = [_Walker(m, RIDGES[m] if ridges is None else ridges, dict(weights)) for m in methods]
    is_reached, before = False, set[SiteId]()
    for site, later in zip(order, [*order[1:], None], strict=True):
        if not is_reached and not bool(mask[anatomy.columns[site.id]].all()):
            is_reached = True
            for walker in walkers:
                walker.completed = list(whole.completed)
        if not is_reached:
            before.add(site.id)
        elif is_linear(model, site):
            walk.fit(site, whole, walkers)
        block = block_or_attention(model, site)
        if later is not None and block_or_attention(model, later) is not block:
            for walker in (whole, *walkers) if is_reached else (whole,):
                walk.advance(walker, through=block)
    return [
        Reconstructed(one.weights, one.ridge_of, frozenset(before), one.grams) for one in walkers
    ]


@dataclass(eq=False)
class _Walker:
    """A model with output projections of its own that is walked through, and how far every batch has come.

    Without a method it is the whole model.
    """

    method: FitMethod | None
    ridges: Sequence[float]
    weights: dict[str, Tensor]
    completed: list[CompletedCalls] = field(default_factory=list)
    again: dict[int, list[Callable[[], Call]]] = field(default_factory=lambda: defaultdict(list))
    ridge_of: dict[str, float] = field(default_factory=dict)
    grams: dict[SiteId, Tensor] = field(default_factory=dict)

    def set(self, name: str, value: Tensor) -> None:
        """Let a parameter have another value."""
        self.weights[name] = value.to(self.weights[name]).contiguous()


@dataclass(frozen=True, eq=False)
class _Walk:
    """A model, and what walks through it."""

    model: PreTrainedModel
    anatomy: Anatomy
    batches: Sequence[Batch]
    mask: Float[Tensor, " heads"]
    residual: Mapping[SiteId, ResidualSum]
    to_stream: bool
    last_only: Mapping[nn.Module, nn.ModuleList]

    def batch(self, index: int) -> Batch:
        return self.batches[index].to(input_device(self.model))

    @contextmanager
    def _as(self, walker: _Walker) -> Iterator[None]:
        """Give the model a walker's weights, and silence the heads that will be removed for all but the whole one."""
        with swapped_weights(self.model, walker.weights):
            if walker.method is None:
                yield
            else:
                with gated(self.model, self.anatomy, gates=self.mask):
                    yield

    def _completed(self, walker: _Walker, index: int) -> CompletedCalls:
        """Return how far a batch has come, the attentions in the block that it is in included."""
        return (*walker.completed[index], *(again() for again in walker.again[index]))

    def advance(self, walker: _Walker, *, through: nn.Module) -> None:
        """Take every batch through a block; drop the outputs of those before it where nothing reads them."""
        blocks = self.last_only.get(through)
        with self._as(walker):
            for index in range(len(self.batches)):
                done, batch = self._completed(walker, index), self.batch(index)
                done = advance_through(
                    self.model, self.anatomy, batch, completed=done, through=through
                )
                walker.completed[index] = done if blocks is None else without_values(done, blocks)
        walker.again.clear()

    def fit(self, site: Site, whole: _Walker, walkers: Sequence[_Walker]) -> None:
        """Fit an output projection's weights, for every walker."""
        transposed = not isinstance(self.model.get_submodule(site.output), Conv1D)
        weight_name, bias_name = f"{site.output}.weight", f"{site.output}.bias"
        weight = whole.weights[weight_name]
        weight = _double(weight.T if transposed else weight)
        bias = _double(whole.weights[bias_name]) if bias_name in whole.weights else None
        kept = self.mask[self.anatomy.columns[site.id]].bool()
        columns = columns_of(site, kept, width=len(weight)).to(weight.device)
        none = no_sums(len(columns), weight.shape[1], device=weight.device)
        # Folds are for choosing: without a choice there is one.
        folds = [[none] * (FOLDS if len(walker.ridges) > 1 else 1) for walker in walkers]
        scales = [self._scale(site, walker, weight) for walker in walkers]
        first = 0
        for index, batch in enumerate(self.batches):
            there, example = self._read(site, index, whole)
            output = there.z @ weight.to(there.z) + (0 if bias is None else bias.to(there.z))
            for walker, scale, sums in zip(walkers, scales, folds, strict=True):
                own, _ = self._read(site, index, walker)
                target, weights = _target(output, scale.to(output), there.stream, own.stream)
                fold_of = (first + example) % len(sums)
                for fold in fold_of.unique().tolist():
                    at = fold_of == fold
                    some = None if weights is None else weights[at]
                    sums[fold] = sums[fold].plus(own.z[at][:, columns], target[at], some)
            first += batch.num_examples
        for walker, scale, sums in zip(walkers, scales, folds, strict=True):
            if walker.method is None or not any(float(fold.gram[-1, -1]) for fold in sums):
                continue
            if not self.to_stream:
                walker.grams[site.id] = of_all_heads(sum_of(sums).gram.cpu(), kept, site.head_dim)
            solved = solve(
                sums,
                weight[columns] * scale,
                None if bias is None else bias * scale,
                method=walker.method,
                head_dim=site.head_dim,
                ridges=walker.ridges,
            )
            changed = weight.clone()
            changed[columns] = _unscaled(solved.weight, scale, weight[columns])
            walker.set(weight_name, changed.T if transposed else changed)
            if solved.bias is not None and bias is not None:
                walker.set(bias_name, _unscaled(solved.bias, scale, bias))
            if solved.ridge is not None:
                walker.ridge_of[site.output] = solved.ridge

    def _scale(self, site: Site, walker: _Walker, weight: Tensor) -> Float64[Tensor, " outputs"]:
        """Return the factors of an attention's output in the stream; ones where the target is that output alone."""
        total = self.residual.get(site.id) if walker.method == "refit" else None
        return torch.ones_like(weight[0]) if total is None else total.scale.to(weight)

    def _read(
        self, site: Site, index: int, walker: _Walker
    ) -> tuple[Read, Int[Tensor, " positions"]]:
        """Return what there is at all positions that aren't padding, and the example of each."""
        batch = self.batch(index)
        total = self.residual.get(site.id) if walker.method in (None, "refit") else None
        with self._as(walker):
            done = self._completed(walker, index)
            z, stream, again = read(self.model, batch, site, total=total, completed=done)
        if again is not None:
            walker.again[index].append(again)
        real = real_positions(site, z.shape[:-1], batch)
        row = row_of_position(site, z.shape[:-1], batch)
        # Of rows that can't be told apart, all are one example.
        none = torch.zeros(z.shape[:-1].numel(), dtype=torch.long)
        example = none if row is None else batch.example_of_row[row]

        def at_real(values: Tensor) -> Tensor:
            return values if real is None else values[real.flatten().to(values.device)]

        z = at_least_single(at_real(z.flatten(0, -2)))
        stream = None if stream is None else at_least_single(at_real(stream.flatten(0, -2)))
        return Read(z, stream, again), at_real(example).to(z.device)


def _target(
    output: Float[Tensor, "positions outputs"],
    scale: Float[Tensor, " outputs"],
    whole: Float[Tensor, "positions outputs"] | None,
    pruned: Float[Tensor, "positions outputs"] | None,
) -> tuple[Float[Tensor, "positions outputs"], Float[Tensor, " positions"] | None]:
    """Return what a projection should put out, times the factors, and how much each position counts (None: all alike)."""
    if whole is None or pruned is None:
        return output, None
    wanted = output * scale + whole
    return wanted - pruned, wanted.square().mean(-1).clamp_min(_SMALLEST_SQUARE).reciprocal()


def _unscaled(scaled: Tensor, scale: Tensor, before: Tensor) -> Tensor:
    """Return what was solved in the stream's units in those of the output; what isn't in the stream stays as it was."""
    return torch.where(scale == 0, before, scaled / scale.where(scale != 0, 1.0))


def _double(tensor: Tensor) -> Tensor:
    """Return it in double precision: on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
