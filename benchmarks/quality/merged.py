"""Key/value groups of a Llama that are merged instead of removed: all query heads stay, and the groups of some layers become one.

Ainslie et al. 2023 (GQA, arXiv:2305.13245) take the mean of keys and of values. Here groups are brought in line first, as far as
rotary positions allow it: keys by a complex factor for each frequency, which the queries take over; values by any matrix, which
the output projection takes over. What replaces them has weights as large as theirs, so that it can be trained at the same rate.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Complex128, Float64
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.subjects import Case
from headprune.batch import Batch, forward
from headprune.distillation.teacher import distance_between, mean_distance

_ROWS = 4
"""So many calibration rows tell in which layers merging costs least."""


@torch.no_grad()
def merge_groups(case: Case, keep: float) -> PreTrainedModel:
    """Return a copy with a share ``keep`` of the key/value groups at most, one a layer at least: some have one, others all.

    It is the layers whose merging, each alone, moves the outputs least.
    """
    whole: Any = case.session.model
    rows, way = case.parts.calibrate.examples, case.session.task.distillation
    grams = _grams(whole, case.session.batches(rows))
    few, distance = case.session.batches(rows[:_ROWS]), distance_between(way, way)
    model: PreTrainedModel = copy.deepcopy(whole)
    layers: Any = model.base_model.layers
    moved = list[float]()
    for layer, gram in zip(layers, grams, strict=True):
        attention = layer.self_attn
        layer.self_attn = copy.deepcopy(attention)
        merge(layer.self_attn, gram)
        moved.append(mean_distance(model, whole, batches=few, distance=distance))
        layer.self_attn = attention
    groups: int = whole.config.num_key_value_heads
    left = groups * len(layers)
    for index in sorted(range(len(layers)), key=moved.__getitem__):
        if left <= keep * groups * len(layers):
            break
        merge(layers[index].self_attn, grams[index])
        left -= groups - 1
    return model


def merge(attention: Any, gram: Float64[Tensor, "width width"]) -> None:
    """Let all heads of an attention without biases read one group of keys and values, in place.

    Args:
        attention: A Llama's.
        gram: ``X^T X`` of what its projections read.
    """
    parts = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
    by_head = (-1, attention.head_dim)
    query, key, value = (
        parts[name].weight.double().unflatten(0, by_head).to(gram) for name in "qkv"
    )
    out = parts["o"].weight.double().unflatten(1, by_head).transpose(0, 1).to(gram)
    heads = len(query) // len(key)
    queries, keys = _complex(query).unflatten(0, (-1, heads)), _complex(key)
    factors, one_key = _one_key(queries, keys, gram)
    maps, one_value = _one_value(out.unflatten(0, (-1, heads)), value, gram)
    queries = (queries * factors.conj()[:, None, :, None]).flatten(0, 1)
    out = torch.einsum("goi,ghwi->ghwo", maps, out.unflatten(0, (-1, heads))).flatten(0, 1)
    new = {
        "q": torch.cat([queries.real, queries.imag], 1).flatten(0, 1),
        "k": torch.cat([one_key.real, one_key.imag]),
        "v": one_value,
        "o": out.transpose(0, 1).flatten(1),
    }
    for name, weight in new.items():
        parts[name].weight.data = weight.to(parts[name].weight).contiguous()
    parts["k"].out_features = parts["v"].out_features = attention.head_dim
    attention.num_key_value_groups = len(query)


def _complex(
    weight: Float64[Tensor, "heads head_dim width"],
) -> Complex128[Tensor, "heads frequencies width"]:
    """Return the two rows of each frequency as one: a rotary position multiplies it by a complex number."""
    return torch.complex(*weight.chunk(2, 1))


def _one_key(
    queries: Complex128[Tensor, "groups heads frequencies width"],
    keys: Complex128[Tensor, "groups frequencies width"],
    gram: Float64[Tensor, "width width"],
) -> tuple[Complex128[Tensor, "groups frequencies"], Complex128[Tensor, "frequencies width"]]:
    """Return what all groups' keys are near to, and the factor by which each is, weighted by what its queries make of it."""
    gram, usual = gram.to(keys), keys.norm(dim=-1).mean(0)
    size = torch.einsum("ghfw,wx,ghfx->gf", queries, gram, queries.conj()).real.clamp_min(1e-12)
    keys = keys * size.sqrt()[..., None]
    among = torch.einsum("gfw,wx,hfx->fgh", keys, gram, keys.conj())
    first = torch.linalg.eigh(among).eigenvectors[..., -1].T  # of the largest eigenvalue
    one = torch.einsum("gf,gfw->fw", first.conj(), keys)
    larger = one.norm(dim=-1) / usual
    return first / size.sqrt() * larger, one / larger[:, None]


def _one_value(
    out: Float64[Tensor, "groups heads width head_dim"],
    values: Float64[Tensor, "groups head_dim width"],
    gram: Float64[Tensor, "width width"],
) -> tuple[Float64[Tensor, "groups head_dim head_dim"], Float64[Tensor, "head_dim width"]]:
    """Return what all groups' values are near to, and the matrix by which each is: ``v_g = v M_g``, of rows.

    Near by what the heads put out of them, each reading its own position.
    """
    square = torch.einsum("ghwi,ghwj->gij", out, out)
    ridge = 1e-9 * square.diagonal(dim1=1, dim2=2).mean() * torch.eye(square.shape[1]).to(square)
    roots = torch.linalg.cholesky(square + ridge)
    seen = torch.einsum("gij,giw->gjw", roots, values).flatten(0, 1)
    most = torch.linalg.eigh(seen @ gram @ seen.T).eigenvectors[:, -values.shape[1] :]
    one = most.T @ seen
    larger = one.norm(dim=1) / values.norm(dim=-1).mean()
    per_group = most.unflatten(0, (len(values), -1)).transpose(1, 2) * larger[:, None]
    maps = torch.linalg.solve_triangular(roots, per_group, upper=False, left=False)
    return maps, one / larger[:, None]


def _grams(model: Any, batches: Sequence[Batch]) -> list[Float64[Tensor, "width width"]]:
    """Return ``X^T X`` of what the projections of each layer read, over rows without padding."""
    found: list[Any] = [0.0] * len(model.model.layers)

    def note(index: int, read: Tensor) -> None:
        rows = read.flatten(0, -2).double()
        found[index] = found[index] + rows.T @ rows

    with ExitStack() as stack:
        for index, layer in enumerate(model.model.layers):
            hook = layer.self_attn.k_proj.register_forward_pre_hook(
                lambda _module, given, index=index: note(index, given[0])
            )
            stack.callback(hook.remove)
        for batch in batches:
            forward(model, batch.to(model.device).inputs)
    return found
