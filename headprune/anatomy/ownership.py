"""Which indices of which parameter belong to which head, told by autograd.

For head ``h`` the gradient of ``sum(z_h * R)`` (``R`` random) with respect to every parameter of the attention is non-zero
exactly where the parameter feeds that head. Disjoint sets are per-head rows; sets shared inside a group are the keys and
values of GQA; a set common to all heads is not a head dimension. So fused layouts, per-head biases and gates need no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.exceptions import ATTRIBUTES
from headprune.anatomy.sites import Attribute, Run, Slice
from headprune.anatomy.trace import AttentionCall, LinearCall, in_features


@dataclass(frozen=True, slots=True)
class Pattern:
    """An attention of the tiny clone, in full: what :mod:`headprune.anatomy.locate` looks for in the real model."""

    path: str
    output: str
    class_name: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...]


def find_patterns(
    clone: PreTrainedModel, events: Sequence[AttentionCall | LinearCall]
) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the attentions of a recorded forward, and the reason for each that is not understood."""
    names = {module: name for name, module in clone.named_modules()}
    patterns: list[Pattern] = []
    refused: dict[str, str] = {}
    seen: set[nn.Module] = set()
    for index, event in enumerate(events):
        if not isinstance(event, AttentionCall):
            continue
        path = names[event.module]
        if event.module in seen:
            refused[path] = "the same module is called at several depths"
            continue
        seen.add(event.module)
        output = _output_projection(event, events[index + 1 :])
        if output is None:
            refused[path] = (
                "no linear layer reads the concatenated outputs of its heads and nothing else"
            )
            continue
        owned = _owned_slices(clone, path, names[output.module], event, output)
        problem = _contradiction(event, owned)
        if problem:
            refused[path] = problem
            continue
        patterns.append(
            Pattern(
                path=path,
                output=names[output.module],
                class_name=type(event.module).__name__,
                num_heads=event.num_heads,
                num_key_value_heads=event.num_key_value_heads,
                head_dim=event.head_dim,
                slices=owned,
                attributes=_attributes(event, path),
            )
        )
    repeated = {pattern.path for pattern in patterns if pattern.path in refused}
    return tuple(pattern for pattern in patterns if pattern.path not in repeated), refused


def _output_projection(
    attention: AttentionCall, following: Sequence[AttentionCall | LinearCall]
) -> LinearCall | None:
    """Return the first linear layer after an attention whose input depends on it, if it reads exactly ``z``."""
    for event in following:
        if isinstance(event, AttentionCall):
            return None
        if _depends(event.input, attention.output):
            width = attention.num_heads * attention.head_dim
            return event if in_features(event.module) == width else None
    return None


def _depends(tensor: Tensor, source: Tensor) -> bool:
    if not tensor.requires_grad or not source.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(tensor.sum(), source, retain_graph=True, allow_unused=True)
    return gradient is not None


def _owned_slices(
    clone: nn.Module, path: str, output_path: str, attention: AttentionCall, output: LinearCall
) -> tuple[Slice, ...]:
    """Return the head dimensions of every parameter around one attention, the output projection's first."""
    scope = _common_parent(path, output_path)
    parameters = {
        name: parameter
        for name, parameter in clone.named_parameters()
        if name.startswith(f"{scope}.") and not name.startswith(f"{output_path}.")
    }
    gradients = _gradients_by_head(output.input, attention, list(parameters.values()))
    slices = [_output_slice(output, output_path, attention)]
    for column, (name, parameter) in enumerate(parameters.items()):
        found = _head_dimension([row[column] for row in gradients], parameter)
        if found is not None:
            slices.append(Slice(name, *found))
    return tuple(_with_biases(slices, parameters))


def _gradients_by_head(
    z: Tensor, attention: AttentionCall, parameters: list[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(z.shape, generator=generator)
    width = attention.head_dim
    return [
        torch.autograd.grad(
            (z * weights)[..., head * width : (head + 1) * width].sum(),
            parameters,
            retain_graph=True,
            allow_unused=True,
        )
        for head in range(attention.num_heads)
    ]


def _head_dimension(
    gradients: Sequence[Tensor | None], parameter: Tensor
) -> tuple[int, tuple[Run, ...]] | None:
    """Return the dimension along which heads own different indices, and the runs along it."""
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


def _output_slice(output: LinearCall, path: str, attention: AttentionCall) -> Slice:
    dim = 0 if isinstance(output.module, Conv1D) else 1
    runs = tuple(Run((head,), attention.head_dim) for head in range(attention.num_heads))
    return Slice(f"{path}.weight", dim, runs)


def _with_biases(slices: Sequence[Slice], parameters: Mapping[str, Tensor]) -> list[Slice]:
    """Give every bias the rows of its weight.

    The gradient of a key's bias is zero but for rounding, because a softmax doesn't see a constant added to all its logits;
    so what autograd says of biases is not to be trusted.
    """
    by_name = {item.parameter: item for item in slices}
    for name, parameter in parameters.items():
        weight = by_name.get(f"{name.removesuffix('bias')}weight")
        if name.endswith(".bias") and weight is not None and parameter.dim() == 1:
            size = sum(run.length for run in weight.runs)
            if parameter.shape[0] == size:
                by_name[name] = Slice(name, 0, weight.runs)
    return list(by_name.values())


def _contradiction(attention: AttentionCall, slices: Sequence[Slice]) -> str | None:
    """Return why ownership and the attention call disagree, or None."""
    heads, groups = attention.num_heads, attention.num_key_value_heads
    if heads % groups:
        return f"{heads} query heads don't divide into {groups} key/value heads"
    size = heads // groups
    lawful = {tuple(range(first, first + size)) for first in range(0, heads, size)}
    lawful |= {(head,) for head in range(heads)} | {()}
    for item in slices:
        for run in item.runs:
            if run.owners not in lawful:
                return f"rows of {item.parameter} are shared by heads {list(run.owners)}, which is no key/value group"
    return None


def _attributes(attention: AttentionCall, path: str) -> tuple[Attribute, ...]:
    heads, groups, width = (
        attention.num_heads,
        attention.num_key_value_heads,
        attention.num_heads * attention.head_dim,
    )
    meaning = {
        "heads": heads,
        "key_value_heads": groups,
        "group_size": heads // groups,
        "width": width,
    }
    values = {name: value for name, value in vars(attention.module).items() if type(value) is int}
    return tuple(
        Attribute(path, name, kind)
        for name, kind in ATTRIBUTES.items()
        if values.get(name) == meaning[kind]
    )


def _common_parent(path: str, other: str) -> str:
    parts = path.split(".")
    while parts and not f"{other}.".startswith(".".join(parts) + "."):
        parts.pop()
    return ".".join(parts)
