"""Which tensor of a llama-like model goes where in a GGUF file, and which models have no place there. Pure: writes nothing.

A file is of the architecture ``llama`` where every layer has the same head counts, else of ``deci``, which has a list of them.
``deci`` reads a layer of 0 heads as one without attention, and then expects neither its projections nor its norm. But llama.cpp
learns the size of heads only where the first layer has one: a first layer that lost all of its heads gets one of zeros, which
says nothing.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.exceptions import LLAMA_LIKE, UNLIKE_LLAMA
from headprune.errors import UnsupportedError

_ROTATED_PARTS = ("q", "k")
_ROTATED = re.compile(r"self_attn\.([qk])_proj\.")
_ROPE = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file.

    Args:
        name: Its name there.
        parameter: Its name in the model.
        rotated_heads: Heads whose rows are in rotary order (queries and keys); 0 for every other tensor.
    """

    name: str
    parameter: str
    rotated_heads: int = 0


@dataclass(frozen=True)
class Layout:
    """The shape of a file.

    Args:
        architecture: ``llama`` or ``deci``.
        heads: Query heads per layer, in the file.
        key_value_heads: Key/value heads per layer, in the file.
        head_dim: Width of one head.
        entries: The tensors, in the file's order.
    """

    architecture: str
    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    head_dim: int
    entries: tuple[Entry, ...]


def refuse_family(config: PreTrainedConfig, *, where: str) -> None:
    """Refuse, by its config alone, a model whose mathematics isn't llama's.

    Raises:
        UnsupportedError: It is of another family, attends in a sliding window, or has another activation or rotary embedding.
    """
    reason = _difference(config)
    if reason is not None:
        raise UnsupportedError(
            f"the model can't be written as GGUF: {reason}",
            where=where,
            hint=f"{' and '.join(LLAMA_LIKE)} models can be; any pruned model runs in transformers (headprune.load)",
        )


def _difference(config: PreTrainedConfig) -> str | None:
    kind = config.model_type
    if kind not in LLAMA_LIKE:
        reason = UNLIKE_LLAMA.get(kind, "its mathematics isn't llama's, or not known to be")
        return f"it is a {kind} model: {reason}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"it attends in a sliding window (sliding_window: {window}), which llama has not"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, and llama's is silu"
    rope = config.rope_parameters["rope_type"]
    if rope not in _ROPE:
        return f"its rotary embedding is scaled by {rope!r}; known here: {', '.join(_ROPE)}"
    return None


def lay_out(model: PreTrainedModel) -> Layout:
    """Return where every tensor of ``model`` goes, in the order of its state; names are those of the package gguf.

    Raises:
        UnsupportedError: It has a parameter that llama has not, such as a bias.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    attention: Any = model.get_submodule("model.layers.0.self_attn")
    head_dim, count = int(attention.head_dim), model.config.num_hidden_layers
    counts = [_head_counts(sizes, layer, head_dim) for layer in range(count)]
    counts[0] = max(counts[0], (1, 1))
    left_out = {f"model.layers.{layer}.self_attn" for layer in range(count) if not counts[layer][0]}
    left_out |= {path.replace("self_attn", "input_layernorm") for path in left_out}
    left_out |= {"lm_head"} if is_tied(model) else set()
    names = get_tensor_name_map(MODEL_ARCH.DECI, count)
    entries, unknown = [], []
    for parameter in sizes:
        if any(parameter.startswith(f"{path}.") for path in left_out):
            continue
        name = names.get_name(parameter, try_suffixes=(".weight",))
        if name is None:
            unknown.append(parameter)
            continue
        layer, rotated = re.search(r"layers\.(\d+)\.", parameter), _ROTATED.search(parameter)
        heads = counts[int(layer[1])][_ROTATED_PARTS.index(rotated[1])] if layer and rotated else 0
        entries.append(Entry(name, parameter, heads))
    if unknown:
        raise UnsupportedError(
            f"the model can't be written as GGUF: llama has no {min(unknown)}",
            where=f"{type(model).__name__} ({len(unknown)} such parameters)",
            hint="a bias or an added module can't be expressed; it runs in transformers (headprune.load)",
        )
    heads_per_layer, groups = (tuple(column) for column in zip(*counts, strict=True))
    even = len(set(counts)) == 1
    return Layout("llama" if even else "deci", heads_per_layer, groups, head_dim, tuple(entries))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output projection is the embedding matrix."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def rope_factors(model: PreTrainedModel) -> Tensor | None:
    """Return by what every rotary frequency is divided (shape ``[head_dim / 2]``), asked of the model; None where by 1.

    Raises:
        UnsupportedError: The rotary embedding also scales the attention, which a file can't say this way.
    """
    rotary: Any = model.get_submodule("model.rotary_emb")
    if model.config.rope_parameters["rope_type"] != "llama3":
        return None
    if rotary.attention_scaling != 1:
        raise UnsupportedError(
            "the model can't be written as GGUF: its rotary embedding scales the attention",
            where="config.json (rope_parameters)",
            hint="it runs in transformers (headprune.load)",
        )
    frequencies: Tensor = rotary.inv_freq.detach().cpu().float()
    size = 2 * len(frequencies)
    base = float(model.config.rope_parameters["rope_theta"])
    plain = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    factors: Tensor = plain / frequencies
    return factors


def _head_counts(sizes: dict[str, torch.Size], layer: int, head_dim: int) -> tuple[int, int]:
    """Return the query and the key/value heads of a layer, told by its weights: a config of uneven layers can't."""
    attention = f"model.layers.{layer}.self_attn"
    rows = (sizes[f"{attention}.{part}_proj.weight"][0] for part in ("q", "k"))
    heads, groups = (int(number) // head_dim for number in rows)
    return heads, groups if heads else 0
