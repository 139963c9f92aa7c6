"""Which indices of which parameter belong to which head, told by autograd.

For head ``h`` the gradient of ``sum(z_h * R)`` (``R`` random) with respect to every parameter of the attention is non-zero
exactly where the parameter feeds that head. Disjoint sets are per-head rows; sets shared inside a group are the keys and
values of GQA; a set common to all heads is not a head dimension. So fused layouts, per-head biases and gates need no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.candidates import Candidate, candidates
from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import ATTRIBUTES
from headprune.anatomy.sites import Attribute, Call, Execution, RowOrder, Run, Slice
from headprune.anatomy.trace import LayerCall, Recording, input_dimension, is_linear, record

UNKNOWN_ORDER = "the rows of the batch can't be told apart at the input of its output projection"


@dataclass(frozen=True, slots=True)
class Pattern:
    """An attention of the tiny clone, in full: what :mod:`headprune.anatomy.locate` looks for in the real model.

    ``attributes`` are all integers that could be meant; which of them must change is found by trying. A module that the
    model replaces while it runs has no class to go by, and would lose what was changed in it: only its layers are cut.
    """

    path: str
    output: str
    gate: str
    class_name: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...]
    execution: Execution = "native"
    when_empty: Execution | None = None
    may_run_natively: bool = True
    called: Call = "module"
    rows: RowOrder = "batch-major"


def find_patterns(
    clone: PreTrainedModel, recording: Recording
) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the attentions of a recorded forward, and the reason for each that is not understood."""
    names = {module: name for name, module in clone.named_modules()}
    patterns: dict[str, Pattern] = {}
    refused: dict[str, str] = {}
    for module, found in candidates(recording, names):
        path = names[module]
        if path in patterns:
            continue  # called at several depths: one site, cut for all of them
        reason = "no linear layer reads the concatenated outputs of its heads and nothing else"
        for candidate in found:
            pattern = _pattern(clone, path, names, candidate)
            if isinstance(pattern, Pattern):
                patterns[path] = pattern
                break
            reason = pattern
        else:
            refused[path] = reason
    return tuple(patterns.values()), {
        path: reason for path, reason in refused.items() if path not in patterns
    }


def _pattern(
    clone: nn.Module, path: str, names: Mapping[nn.Module, str], candidate: Candidate
) -> Pattern | str:
    """Return the attention that a candidate is, or why it is none."""
    output = names[candidate.output]
    slices = _owned_slices(clone, path, output, candidate)
    if len(slices) < 2:
        return "its heads can't be told apart at the input of its output projection"
    groups = _number_of_groups(slices, candidate)
    if groups is None:
        slices = tuple(_without_shared(item) for item in slices)
        groups = candidate.num_heads
    return Pattern(
        path=path,
        output=output,
        gate=names[candidate.gate],
        class_name=type(candidate.module).__name__,
        num_heads=candidate.num_heads,
        num_key_value_heads=groups,
        head_dim=candidate.head_dim,
        slices=slices,
        attributes=_attributes(clone, _common_parent(path, output), candidate, groups),
        called=candidate.called,
    )


def _owned_slices(
    clone: nn.Module, path: str, output_path: str, candidate: Candidate
) -> tuple[Slice, ...]:
    """Return the head dimensions of every parameter around one attention, the output projection's first."""
    scope = _common_parent(path, output_path)
    inside = f"{scope}." if scope else ""
    parameters = {
        name: parameter
        for name, parameter in clone.named_parameters()
        if name.startswith(inside) and not name.startswith(f"{output_path}.")
        if parameter.is_floating_point()
    }
    gradients = _gradients_by_head(candidate, list(parameters.values()))
    runs = tuple(Run((head,), candidate.head_dim) for head in range(candidate.num_heads))
    slices = [Slice(f"{output_path}.weight", input_dimension(candidate.output), runs, "input")]
    for column, (name, parameter) in enumerate(parameters.items()):
        found = _head_dimension([row[column] for row in gradients], parameter)
        if found is not None:
            owner = clone.get_submodule(name.rpartition(".")[0])
            slices.append(Slice(name, *found, side=_side(owner, found[0])))
    return tuple(_with_biases(slices, parameters))


def _side(module: nn.Module, dim: int) -> Literal["input", "output"] | None:
    if not is_linear(module):
        return None
    return "input" if dim == input_dimension(module) else "output"


def _gradients_by_head(
    candidate: Candidate, parameters: list[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(candidate.z.shape, generator=generator)
    width = candidate.head_dim
    return [
        torch.autograd.grad(
            (candidate.z * weights)[..., head * width : (head + 1) * width].sum(),
            parameters,
            retain_graph=True,
            allow_unused=True,
        )
        for head in range(candidate.num_heads)
    ]


def _head_dimension(
    gradients: Sequence[Tensor | None], parameter: Tensor
) -> tuple[int, tuple[Run, ...]] | None:
    """Return the dimension along which heads own different indices, and the runs along it."""
    if all(gradient is None for gradient in gradients):
        return None
    for dim in range(parameter.dim()):
        others = [other for other in range(parameter.dim()) if other != dim]
        touched = [
            (g.abs().amax(dim=others) if others else g.abs()) > 0
            if g is not None
            else torch.zeros(parameter.shape[dim], dtype=torch.bool)
            for g in gradients
        ]
        table = torch.stack(touched)  # [heads, indices]
        if bool((table != table[0]).any()):
            return dim, _runs(table)
    return None


def _runs(table: Tensor) -> tuple[Run, ...]:
    owners = [tuple(torch.nonzero(column).flatten().tolist()) for column in table.T]
    everyone = tuple(range(table.shape[0]))
    named = [() if owner == everyone else owner for owner in owners]
    return tuple(Run(owner, len(list(same))) for owner, same in groupby(named))


def _with_biases(slices: Sequence[Slice], parameters: Mapping[str, Tensor]) -> list[Slice]:
    """Give every bias the rows of its weight: none where that has none.

    The gradient of a key's bias is zero but for rounding, because a softmax doesn't see a constant added to all its logits (nor
    that of a norm before the key: CvT); so what autograd says of biases is not to be trusted.
    """
    by_name = {item.parameter: item for item in slices}
    for name, parameter in parameters.items():
        weight = f"{name.removesuffix('bias')}weight"
        if not name.endswith("bias") or weight not in parameters or parameter.dim() != 1:
            continue
        cut = by_name.get(weight)
        if cut is None:
            by_name.pop(name, None)
        elif parameter.shape[0] == sum(run.length for run in cut.runs):
            by_name[name] = Slice(name, 0, cut.runs, cut.side)
    return list(by_name.values())


def _number_of_groups(slices: Sequence[Slice], candidate: Candidate) -> int | None:
    """Return the number of key/value heads that ownership shows; None where heads share rows in no lawful way."""
    heads = candidate.num_heads
    shared = {run.owners for item in slices for run in item.runs if len(run.owners) > 1}
    if not shared:
        return 1 if candidate.num_key_value_heads == 1 else heads
    size = len(min(shared, key=len))
    lawful = {tuple(range(first, first + size)) for first in range(0, heads, size)}
    return heads // size if heads % size == 0 and shared <= lawful else None


def _without_shared(item: Slice) -> Slice:
    """Leave alone whatever several heads share."""
    runs = tuple(Run(run.owners if len(run.owners) == 1 else (), run.length) for run in item.runs)
    return replace(item, runs=runs)


def _attributes(
    clone: nn.Module, scope: str, candidate: Candidate, groups: int
) -> tuple[Attribute, ...]:
    heads, width = candidate.num_heads, candidate.num_heads * candidate.head_dim
    meaning = {
        "heads": heads,
        "key_value_heads": groups,
        "group_size": heads // groups,
        "width": width,
    }
    found: list[Attribute] = []
    for name, module in clone.get_submodule(scope).named_modules(prefix=scope):
        if is_linear(module):
            continue
        values: dict[str, object] = dict(vars(module))
        config = values.get("config")
        if config is not None:
            read = [key.removeprefix("config.") for key in ATTRIBUTES if key.startswith("config.")]
            values |= {f"config.{key}": config_value(config, key) for key in read}
        found += [
            Attribute(name, key, kind)
            for key, kind in ATTRIBUTES.items()
            if type(values.get(key)) is int and values[key] == meaning[kind]
        ]
    return tuple(found)


def _common_parent(path: str, other: str) -> str:
    parts = path.split(".")
    while parts and not f"{other}.".startswith(".".join(parts) + "."):
        parts.pop()
    return ".".join(parts)


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
