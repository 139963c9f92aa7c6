"""Fit the output projections of a model that loses heads, attention by attention, in the order in which they run.

Inputs come from the model that has lost its heads and was reconstructed so far, targets from the whole one. Several ways (see
:mod:`~headprune.surgery.least_squares`) walk through the model side by side: the whole model costs a forward, each way 4/3.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch
from headprune.masking import gated, places_of, real_positions, row_of_position
from headprune.passes import Parts
from headprune.placement import input_device
from headprune.replay.walk import (
    CompletedCalls,
    advance_through,
    block_or_attention,
    in_order,
    list_of,
    read_from,
    reads_last_only,
    without_values,
)
from headprune.surgery.least_squares import FOLDS, RIDGES, How, Sums, no_sums, solve


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What one way came to.

    Args:
        weights: The parameters of all output projections, by name.
        ridges: By the name of the projection, how strongly it was held to what was there.
    """

    weights: dict[str, Tensor]
    ridges: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Walker:
    """A model with weights of its own that is walked through, and the calls that every batch has completed."""

    made: Reconstructed
    how: How | None = None
    completed: list[CompletedCalls] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.made.weights


@dataclass(frozen=True, eq=False)
class _Path:
    """What is the same for all walkers."""

    model: PreTrainedModel
    anatomy: Anatomy
    batches: Sequence[Batch]
    mask: Float[Tensor, " heads"]
    ridges: Sequence[float] | None

    @contextmanager
    def walking(self, walker: _Walker) -> Iterator[None]:
        """Give the model a walker's weights, and silence the heads that will go for all but the whole one."""
        with having(self.model, walker.weights):
            if walker.how is None:
                yield
            else:
                with gated(self.model, self.anatomy, gates=self.mask):
                    yield

    def batch(self, place: int) -> Batch:
        return self.batches[place].to(input_device(self.model))


@torch.no_grad()
def fit(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    mask: Float[Tensor, " heads"],
    ways: Sequence[How],
    ridges: Sequence[float] | None = None,
) -> list[Reconstructed]:
    """Return for every way the output projections, reconstructed from the first attention on that loses a head.

    Where memory runs out, all of it is done again with smaller batches: the same sums over the same positions.

    Those that aren't linear in ``z`` (a norm or a function stands in between), and those that run more than once a forward, stay
    as they are.

    Args:
        model: The model; it is left as it was.
        anatomy: Its anatomy.
        batches: What is fitted on.
        mask: 0 for the heads that will go.
        ways: What is solved.
        ridges: Those to choose from, if not :data:`~headprune.surgery.least_squares.RIDGES`.

    Raises:
        MemoryLimitError: Memory ran out with one example a batch.
    """
    parts = Parts[Sequence[Batch]]("reconstruction", _with_halves)
    made = partial(_fit, model, anatomy, mask=mask, ways=ways, ridges=ridges)
    return parts.largest(batches, made)[1]


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
    ways: Sequence[How],
    ridges: Sequence[float] | None,
) -> list[Reconstructed]:
    path = _Path(model, anatomy, batches, mask, ridges)
    whole = _Walker(Reconstructed(projections(model, anatomy)), completed=[()] * len(batches))
    reconstruction = [_Walker(Reconstructed(dict(whole.weights)), how) for how in ways]
    order = in_order(model, anatomy, path.batch(0))
    reached = False
    for place, site in enumerate(order):
        kept = mask[anatomy.columns[site.id]].bool()
        if not reached and not bool(kept.all()):
            reached = True
            for walker in reconstruction:
                walker.completed = list(whole.completed)
        if reached and _is_linear(model, site):
            _reconstruct_site(path, site, whole, reconstruction)
        later = order[place + 1] if place + 1 < len(order) else None
        if later is not None and block_or_attention(model, later) is not block_or_attention(
            model, site
        ):
            for walker in (whole, *reconstruction) if reached else (whole,):
                _walk_on(path, walker, through=block_or_attention(model, site), next_read=later)
    return [walker.made for walker in reconstruction]


def _walk_on(path: _Path, walker: _Walker, *, through: nn.Module, next_read: Site) -> None:
    """Take every batch through a block; drop the outputs of those before it where nothing reads them."""
    model, module = path.model, path.model.get_submodule(next_read.output)
    blocks = list_of(model, through)
    drop = None
    with path.walking(walker):
        for place in range(len(path.batches)):
            batch = path.batch(place)
            completed = advance_through(
                model, path.anatomy, batch, completed=walker.completed[place], through=through
            )
            if drop is None:
                drop = blocks is not None and reads_last_only(
                    model, batch, module, completed=completed, blocks=blocks
                )
            walker.completed[place] = (
                without_values(completed, blocks) if drop and blocks else completed
            )


def _reconstruct_site(
    path: _Path, site: Site, whole: _Walker, reconstruction: Sequence[_Walker]
) -> None:
    """Fit an output projection's weights, for every way."""
    projection = path.model.get_submodule(site.output)
    transposed = not isinstance(projection, Conv1D)
    weight_name, bias_name = f"{site.output}.weight", f"{site.output}.bias"
    old = whole.weights[weight_name]
    old = _double(old.T if transposed else old)
    bias = _double(whole.weights[bias_name]) if bias_name in whole.weights else None
    columns = _columns(site, path.mask[path.anatomy.columns[site.id]].bool(), width=len(old))
    columns = columns.to(old.device)
    none = no_sums(len(columns), old.shape[1], device=old.device)
    ways = [walker.how for walker in reconstruction if walker.how is not None]
    ridges = [RIDGES[how] if path.ridges is None else path.ridges for how in ways]
    # Parts are for choosing: without a choice there is one.
    folds = [[none] * (FOLDS if len(choice) > 1 else 1) for choice in ridges]
    first = 0
    for place in range(len(path.batches)):
        batch = path.batch(place)
        with path.walking(whole):
            left, example = _inputs(path.model, site, batch, completed=whole.completed[place])
        wanted = left @ old if bias is None else left @ old + bias
        place_of = first + example
        for walker, sums in zip(reconstruction, folds, strict=True):
            with path.walking(walker):
                left, _ = _inputs(path.model, site, batch, completed=walker.completed[place])
            _add(sums, left[:, columns], wanted, place_of % len(sums))
        first += batch.num_examples
    for walker, how, sums, choice in zip(reconstruction, ways, folds, ridges, strict=True):
        if not any(float(fold.gram[-1, -1]) for fold in sums):
            continue
        found = solve(
            sums,
            old[columns],
            bias,
            how=how,
            head_dim=site.head_dim,
            ridges=choice,
        )
        changed = old.clone()
        changed[columns] = found.weight
        _write(walker, weight_name, changed.T if transposed else changed)
        if found.bias is not None:
            _write(walker, bias_name, found.bias)
        if found.ridge is not None:
            walker.made.ridges[site.output] = found.ridge


def _add(folds: list[Sums], left: Tensor, wanted: Tensor, fold: Tensor) -> None:
    for place, sums in enumerate(folds):
        mine = fold == place
        if bool(mine.any()):
            folds[place] = sums.plus(left[mine], wanted[mine])


def _double(tensor: Tensor) -> Tensor:
    """Return it in double precision: on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _write(walker: _Walker, name: str, value: Tensor) -> None:
    walker.weights[name] = value.to(walker.weights[name]).contiguous()


def _is_linear(model: PreTrainedModel, site: Site) -> bool:
    projection = model.get_submodule(site.output)
    plain = type(projection) in (nn.Linear, Conv1D) and site.called == "module"
    return plain and site.gate == site.output and bool(site.heads)


def _inputs(
    model: PreTrainedModel, site: Site, batch: Batch, *, completed: CompletedCalls
) -> tuple[Float64[Tensor, "positions width"], Int[Tensor, " positions"]]:
    """Return what a site's output projection reads at all positions that aren't padding, and the example of each."""
    z = read_from(model, batch, model.get_submodule(site.output), completed=completed)
    real = real_positions(site, z.shape[:-1], batch)
    found = z.flatten(0, -2)
    row = row_of_position(site, z.shape[:-1], batch)
    # Of rows that can't be told apart, all are one example.
    example = (
        torch.zeros(len(found), dtype=torch.long) if row is None else batch.example_of_row[row]
    )
    if real is not None:
        found = found[real.flatten().to(z.device)]
        example = example[real.flatten().to(example.device)]
    found = _double(found)
    return found, example.to(found.device)


def _columns(site: Site, kept: Tensor, *, width: int) -> Tensor:
    """Return which of the ``width`` inputs of the output projection belong to heads that stay."""
    places = places_of(site, width // site.head_dim)
    where = torch.arange(len(site.heads)) if places is None else torch.tensor(places)
    starts = where[kept] * site.head_dim
    return (starts[:, None] + torch.arange(site.head_dim)).flatten()


def can_fit(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether all output projections are there: not where they wait elsewhere until their layer runs (accelerate)."""
    outputs = (model.get_submodule(site.output) for site in anatomy.sites)
    return not any(
        parameter.is_meta for output in outputs for parameter in output.parameters(recurse=False)
    )


def has_bias(model: PreTrainedModel, anatomy: Anatomy) -> bool:
    """Whether an output projection has a bias."""
    outputs = (model.get_submodule(site.output) for site in anatomy.sites)
    return any(getattr(output, "bias", None) is not None for output in outputs)


def projections(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Tensor]:
    """Return copies of all parameters of output projections, by name."""
    outputs = dict.fromkeys(site.output for site in anatomy.sites)
    return {
        f"{output}.{name}": parameter.detach().clone()
        for output in outputs
        for name, parameter in model.get_submodule(output).named_parameters(recurse=False)
    }


@torch.no_grad()
def put_back(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Write parameters into the model."""
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


@contextmanager
def put_back_after(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
    """Take back, at the end of a block, whatever it did to output projections."""
    before = projections(model, anatomy)
    try:
        yield
    finally:
        put_back(model, before)


@contextmanager
def having(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model have other parameters for the length of a block."""
    before: dict[str, Any] = {name: model.get_parameter(name).data for name in values}
    try:
        for name, value in values.items():
            model.get_parameter(name).data = value
        yield
    finally:
        for name, data in before.items():
            model.get_parameter(name).data = data
