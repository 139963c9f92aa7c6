"""Fit the output projections of a model that loses heads, attention by attention, in the order in which they run.

Inputs come from the model that has lost its heads and was reconstructed so far, targets from the whole one. ``refit`` aims at the
whole model's residual stream where an attention's output is added to it (:mod:`~headprune.surgery.residual`): with ``y`` that
output, ``r`` the stream without it and ``c`` the factors it is added with, at ``c y + r_whole - r_pruned``, every position
divided by the mean square of ``c y + r_whole``, as the norm that reads it will. So later attentions make up for what earlier
ones left. The other methods aim at ``y``.

Several methods (see :mod:`~headprune.surgery.least_squares`) walk through the model side by side: the whole model costs a
forward, every method one and a third. What is kept of the positions is their state at the block that is being reconstructed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site
from headprune.artefact import FitMethod
from headprune.batch import Batch
from headprune.heads import SiteId
from headprune.masking import gated, real_positions, row_of_position
from headprune.passes import Parts
from headprune.placement import input_device
from headprune.replay.resume import (
    CompletedCalls,
    advance_through,
    block_or_attention,
    in_order,
    list_of,
    read_from,
    reads_last_only,
    without_values,
)
from headprune.surgery.least_squares import FOLDS, RIDGES, no_sums, solve, sum_of
from headprune.surgery.projections import (
    at_least_single,
    columns_of,
    is_linear,
    of_all_heads,
    projection_weights,
    swapped_weights,
)
from headprune.surgery.residual import ResidualSum, read_with_stream, residual_sums

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
    sums: Mapping[SiteId, ResidualSum] = {}
    if to_stream and "refit" in methods:
        longest = max(batches, key=lambda batch: batch.num_tokens / batch.num_rows)
        few = longest.take(-(-_POSITIONS * longest.num_rows // longest.num_tokens))
        sums = residual_sums(model, anatomy, few.to(input_device(model)))
    walk = _Walk(model, anatomy, batches, mask, sums, to_stream)
    weights = projection_weights(model, anatomy)
    whole = _Walker(None, (), weights, [()] * len(batches))
    walkers = [_Walker(m, RIDGES[m] if ridges is None else ridges, dict(weights)) for m in methods]
    order = in_order(model, anatomy, walk.batch(0))
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
        if later is not None and block_or_attention(model, later) is not block_or_attention(
            model, site
        ):
            for walker in (whole, *walkers) if is_reached else (whole,):
                walk.advance(walker, through=block_or_attention(model, site), next_read=later)
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
    drops: dict[nn.Module, bool] = field(default_factory=dict)

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

    def advance(self, walker: _Walker, *, through: nn.Module, next_read: Site) -> None:
        """Take every batch through a block; drop the outputs of those before it where nothing reads them."""
        model, module = self.model, self.model.get_submodule(next_read.output)
        blocks = list_of(model, through)
        with self._as(walker):
            for index, before in enumerate(walker.completed):
                batch = self.batch(index)
                calls = advance_through(
                    model, self.anatomy, batch, completed=before, through=through
                )
                if through not in self.drops:  # it is the model's, whoever walks through it
                    self.drops[through] = blocks is not None and reads_last_only(
                        model, batch, module, completed=calls, blocks=blocks
                    )
                walker.completed[index] = (
                    without_values(calls, blocks) if self.drops[through] and blocks else calls
                )

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
            read, example = self._read(site, index, whole)
            output = read.z @ weight.to(read.z) + (0 if bias is None else bias.to(read.z))
            for walker, scale, sums in zip(walkers, scales, folds, strict=True):
                own, _ = self._read(site, index, walker)
                target, weights = _target(output, scale.to(output), read.stream, own.stream)
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
    ) -> tuple["_Read", Int[Tensor, " positions"]]:
        """Return what there is at all positions that aren't padding, and the example of each."""
        batch, projection = self.batch(index), self.model.get_submodule(site.output)
        total, stream = self.residual.get(site.id), None
        follows = total is not None and walker.method in (None, "refit")
        with self._as(walker):
            if total is not None and follows:
                z, stream = read_with_stream(
                    self.model, batch, projection, total, completed=walker.completed[index]
                )
            else:
                z = read_from(self.model, batch, projection, completed=walker.completed[index])
        real = real_positions(site, z.shape[:-1], batch)
        row = row_of_position(site, z.shape[:-1], batch)
        # Of rows that can't be told apart, all are one example.
        none = torch.zeros(z.shape[:-1].numel(), dtype=torch.long)
        example = none if row is None else batch.example_of_row[row]

        def at_real(values: Tensor) -> Tensor:
            return values if real is None else values[real.flatten().to(values.device)]

        z = at_least_single(at_real(z.flatten(0, -2)))
        stream = None if stream is None else at_least_single(at_real(stream.flatten(0, -2)))
        return _Read(z, stream), at_real(example).to(z.device)


class _Read(NamedTuple):
    """What an output projection reads, and the stream that its output is added to, where that is followed."""

    z: Float[Tensor, "positions width"]
    stream: Float[Tensor, "positions outputs"] | None


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
