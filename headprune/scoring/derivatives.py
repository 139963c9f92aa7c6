"""How much each example's loss would move with each head's gate: one backward a batch, to activations only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from headprune.anatomy.sites import Site
from headprune.batch import Batch, forward
from headprune.errors import ModelError
from headprune.heads import SiteId
from headprune.masking import changed, gated, places_of, real_positions, row_of_position
from headprune.passes import Work, each_batch, one_after_another, summed
from headprune.placement import input_device, saving_aside, staged
from headprune.replay.logits import example_losses
from headprune.replay.record import Tape
from headprune.scoring.request import Estimate, ScoreRequest, mean_and_error

Projections: TypeAlias = Mapping[SiteId, tuple[Tensor, Tensor]]
"""``T`` [width, width] and ``c`` [width] of every site."""


def each_derivative(request: ScoreRequest) -> tuple[Float64[Tensor, "examples heads"], ...]:
    """Return ``d l / d xi_h`` of every example, batch by batch.

    All methods that are made of these keep them under one name: the second finds what the first has left in the journal.
    """
    with frozen(request.model):
        work = Work[Batch](
            lambda batch: derivatives(request, batch).double(),
            shape=lambda batch: (batch.num_examples, len(request.anatomy.heads)),
            dtype=torch.float64,
            join=one_after_another(0),
        )
        return each_batch(request.batches, work, context=request.context, name="derivatives")


def mean_over_stretches(
    request: ScoreRequest,
    *,
    name: str,
    length: int | None,
    projections: Projections | None = None,
) -> Estimate:
    """Return ``mean_n sum_s |sum_{t in s} r_t . d l_n / d z_t|``: gates of every stretch of positions, summed without signs.

    Args:
        request: The model and the data.
        name: What is being done.
        length: Positions of a stretch, padding not counted; all rows of an example have stretches in common. None: each position
            is on its own.
        projections: ``T`` and ``c`` of every site: ``r`` is ``z T - c``. Without, it is ``z``.
    """

    def sums(batch: Batch) -> Tensor:
        sizes = _sizes(request, batch.to(input_device(request.model)), length, projections)
        return torch.stack([sizes.sum(0), sizes.square().sum(0)])

    with frozen(request.model):
        work = Work(
            sums,
            shape=lambda _batch: (2, len(request.anatomy.heads)),
            dtype=torch.float64,
            join=summed,
        )
        by_batch = each_batch(request.batches, work, context=request.context, name=name)
    total, squares = torch.stack(by_batch).sum(0)
    return mean_and_error(total, squares, n=request.num_examples)


def _sizes(
    request: ScoreRequest, batch: Batch, length: int | None, projections: Projections | None
) -> Float64[Tensor, "examples heads"]:
    """Return ``sum_s |sum_{t in s} r_t . d l_n / d z_t|`` of every example of a batch; see :func:`mean_over_stretches`."""
    anatomy = request.anatomy
    calls: list[tuple[Site, Tensor, Tensor]] = []

    def add_nothing(site: Site, z: Tensor) -> Tensor:
        leaf = torch.zeros_like(z, requires_grad=True)
        calls.append((site, z.detach(), leaf))
        return z + leaf

    with changed(request.model, anatomy, add_nothing):
        losses = _losses(request, batch)
    leaves = [leaf for _site, _z, leaf in calls]
    # Where logits weren't made piece by piece after all, the forward ran twice, and the loss knows nothing of the first.
    slopes = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    on_device: list[tuple[Site, Tensor]] = []
    for (site, z, _leaf), slope in zip(calls, slopes, strict=True):
        if slope is not None:
            places = places_of(site, z.shape[-2]) or slice(None)
            z, slope = z[..., places, :], slope[..., places, :]
            rest = z if projections is None else _remainder(z, *projections[site.id])
            on_device.append((site, (rest * slope).sum(-1)))
    moves: dict[SiteId, Tensor] = {}
    # All of the device's work is under way before the first result is waited for.
    for site, products in on_device:
        by_stretch = _by_stretch(site, products.cpu().double(), batch, length=length)
        # An attention that runs several times has one gate.
        moves[site.id] = by_stretch + moves[site.id] if site.id in moves else by_stretch
    sizes = torch.zeros(batch.num_examples, len(anatomy.heads), dtype=torch.float64)
    for site_id, by_stretch in moves.items():
        sizes[:, anatomy.columns[site_id]] = by_stretch.abs().sum(1)
    return sizes


def _remainder(
    z: Float[Tensor, "... heads head_dim"], turn: Tensor, shift: Tensor
) -> Float[Tensor, "... heads head_dim"]:
    """Return ``z T - c`` over all heads of an attention; not in half precision: a small difference of large numbers."""
    left = z.flatten(-2).float() @ turn.to(z.device).float() - shift.to(z.device).float()
    rest: Tensor = left.unflatten(-1, z.shape[-2:])
    return rest


def _by_stretch(
    site: Site, moves: Float64[Tensor, "... heads"], batch: Batch, *, length: int | None
) -> Float64[Tensor, "examples stretches heads"]:
    """Return what is summed within every stretch of every example; of positions on their own the sum of sizes, in one stretch."""
    shape, heads = moves.shape[:-1], moves.shape[-1]
    row = row_of_position(site, shape, batch)
    if row is None:
        raise ModelError(
            f"{site.gate} got {shape[0]} rows, and the batch has {batch.num_rows}: which is whose can't be told",
            where="scoring",
            hint="use `batch_size` 1, or the method fluctuation",
        )
    row = row.cpu()
    example = batch.example_of_row.cpu()[row]
    flat = moves.flatten(0, -2)
    if length is None:
        none = flat.new_zeros(batch.num_examples, heads)
        by_example: Tensor = none.index_add(0, example, flat.abs())
        return by_example[:, None]
    real = real_positions(site, shape, batch)
    counts = torch.ones(len(row), dtype=torch.long) if real is None else real.flatten().long().cpu()
    stretch = _place_in_row(row, counts, rows=batch.num_rows) // length
    many = int(stretch.max()) + 1 if len(stretch) else 1
    none = flat.new_zeros(batch.num_examples * many, heads)
    summed: Tensor = none.index_add(0, example * many + stretch, flat)
    by_stretch: Tensor = summed.unflatten(0, (-1, many))
    return by_stretch


def _place_in_row(
    row: Int[Tensor, " positions"], counts: Int[Tensor, " positions"], *, rows: int
) -> Int[Tensor, " positions"]:
    """Return how many positions that count each has before it in its row."""
    order = row.argsort(stable=True)
    before = counts[order].cumsum(0) - counts[order]
    starts = torch.zeros(rows, dtype=torch.long).index_add(0, row, counts).cumsum(0)
    first = torch.cat([starts.new_zeros(1), starts[:-1]])
    place = torch.empty_like(before)
    place[order] = before - first[row[order]]
    return place


def derivatives(
    request: ScoreRequest, batch: Batch, *, at: Float[Tensor, "examples heads"] | None = None
) -> Float[Tensor, "examples heads"]:
    """Return ``d l_n / d xi_h`` for every example of a batch, on the CPU.

    Every row of the batch has gates of its own, so one backward gives all examples.

    Args:
        request: The model, its anatomy, and the loss.
        batch: The examples.
        at: The gates ``xi`` at which the derivatives are taken (default: all 1).
    """
    batch = batch.to(input_device(request.model))
    at = torch.ones(batch.num_examples, len(request.anatomy.heads)) if at is None else at
    xi = staged(at, batch.example_of_row.device).requires_grad_()
    with (
        torch.enable_grad(),
        gated(request.model, request.anatomy, gates=xi[batch.example_of_row]),
    ):
        losses = _losses(request, batch)
    (slopes,) = torch.autograd.grad(losses.sum(), xi)
    on_cpu: Tensor = slopes.cpu()
    return on_cpu


def _losses(request: ScoreRequest, batch: Batch) -> Float[Tensor, " examples"]:
    """Return the losses of a batch, in a graph."""
    model = request.model
    tape = Tape(model, request.anatomy)
    with torch.enable_grad(), saving_aside(model), tape.recording():
        losses: Tensor = example_losses(
            model,
            batch,
            request.loss,
            run=lambda: forward(model, batch.inputs),
            rerun=lambda: tape.rerun(batch),
        )
    return losses[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight of a model learn while the block lasts: a backward goes to activations only."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
