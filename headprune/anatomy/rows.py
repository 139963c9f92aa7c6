"""Which rows of a layer's input come from which row of the batch: asked by running one row alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
    inputs: Mapping[str, Any],
    *,
    recording: Recording,
    patterns: tuple[Pattern, ...],
) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the patterns with the order of their rows, and the reason for each whose order must be known and isn't.

    Some models work with time first, and so does ``F.multi_head_attention_forward``. Where a layer is called as a module and
    its rows lie in neither order (images packed into one row), rows in batch order are assumed, and masking row by row refuses.
    """
    first = _of_first_row(tower, inputs)
    known: list[Pattern] = []
    unknown: dict[str, str] = {}
    for pattern in patterns:
        gate = clone.get_submodule(pattern.gate)
        alone = _input(first, gate) if first else None
        order = None if alone is None else row_order(_input(recording, gate), alone)
        if order is None and pattern.called == "function":
            unknown[pattern.path] = UNKNOWN_ORDER
        else:
            known.append(replace(pattern, rows=order or pattern.rows))
    return tuple(known), unknown


def _of_first_row(tower: PreTrainedModel, inputs: Mapping[str, Any]) -> Recording | None:
    try:
        return record(
            tower,
            {
                name: value[:1] if isinstance(value, Tensor) else value
                for name, value in inputs.items()
            },
        )
    except Exception:  # noqa: BLE001 - inputs of some models belong together, such as patches and their grid
        return None


def row_order(z: Tensor | None, first: Tensor | None) -> RowOrder | None:
    """Return how the rows of a batch lie in ``z``, given what its first row alone gives; None: in neither way.

    >>> row_order(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    'time-major'
    """
    if z is None or first is None or not first.numel():
        return None
    all_rows, one_row = z.detach().flatten(0, -2), first.detach().flatten(0, -2)
    rows, rest = divmod(len(all_rows), len(one_row))
    if rest:
        return None
    if torch.allclose(all_rows[: len(one_row)], one_row, rtol=1e-3, atol=1e-4):
        return "batch-major"
    return "time-major" if torch.allclose(all_rows[::rows], one_row, rtol=1e-3, atol=1e-4) else None


def _input(recording: Recording, layer: nn.Module) -> Tensor | None:
    return next(
        (
            call.input
            for call in recording.calls
            if isinstance(call, LayerCall) and call.module is layer
        ),
        None,
    )
