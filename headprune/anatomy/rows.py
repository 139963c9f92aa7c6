"""Which rows of a layer's input come from which row of the batch: asked by running one row alone."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.ownership import Pattern
from headprune.anatomy.sites import RowOrder
from headprune.anatomy.trace import LayerCall, Recording, record

UNKNOWN_ORDER = "the rows of the batch can't be told apart at the input of its output projection"


def with_row_order(
    clone: nn.Module,
    tower: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    *,
    recording: Recording,
    patterns: tuple[Pattern, ...],
) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the patterns with the order of their rows, and the reason for each whose order is unknown.

    Only those whose weights are passed to a function are asked: ``F.multi_head_attention_forward`` works with time first.
    """
    if all(pattern.called == "module" for pattern in patterns):
        return patterns, {}
    first = record(tower, {name: value[:1] for name, value in inputs.items()})
    known: list[Pattern] = []
    unknown: dict[str, str] = {}
    for pattern in patterns:
        gate = clone.get_submodule(pattern.gate)
        order: RowOrder | None = pattern.rows
        if pattern.called == "function":
            order = row_order(_input(recording, gate), _input(first, gate))
        if order is None:
            unknown[pattern.path] = UNKNOWN_ORDER
        else:
            known.append(replace(pattern, rows=order))
    return tuple(known), unknown


def row_order(z: Tensor, first: Tensor) -> RowOrder | None:
    """Return how the rows of a batch lie in ``z``, given what its first row alone gives; None: in neither way.

    >>> row_order(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    'time-major'
    """
    all_rows, one_row = z.detach().flatten(0, -2), first.detach().flatten(0, -2)
    rows, rest = divmod(len(all_rows), len(one_row))
    if rest:
        return None
    if torch.allclose(all_rows[: len(one_row)], one_row, rtol=1e-3, atol=1e-4):
        return "batch-major"
    return "time-major" if torch.allclose(all_rows[::rows], one_row, rtol=1e-3, atol=1e-4) else None


def _input(recording: Recording, layer: nn.Module) -> Tensor:
    return next(
        call.input
        for call in recording.calls
        if isinstance(call, LayerCall) and call.module is layer
    )
