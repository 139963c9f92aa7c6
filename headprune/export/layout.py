"""Which tensor of a llama-like model goes where in a GGUF file, and which models have no place there. Pure: writes nothing.

A file is of the architecture ``llama`` where every layer has the same head counts, else of ``deci``, which has a list of them.
``deci`` reads a layer of 0 heads as one without attention, and then expects neither its projections nor its norm. But llama.cpp
learns the size of heads only where the first layer has one: a first layer that lost all of its heads gets one of zeros, which
says nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.errors import UnsupportedError

FAMILIES = ("llama", "mistral")
_REASONS = {
    "qwen2": "its query, key and value projections have biases",
    "qwen3": "it normalises queries and keys (q_norm, k_norm)",
    "gemma": "its norms add 1 to their weights and its embeddings are scaled",
    "mixtral": "its feed-forward blocks are mixtures of experts",
    "phi3": "its projections are fused",
}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
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
            hint=f"{' and '.join(FAMILIES)} models can be; any pruned model runs in transformers (headprune.load)",
        )


def _difference(config: PreTrainedConfig) -> str | None:
    kind = config.model_type
    if kind not in FAMILIES:
        reason = _REASONS.get(kind, "its mathematics isn't llama's, or not known to be")
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
    """Return where every tensor of ``model`` goes.

    Raises:
        UnsupportedError: It has a parameter that llama has not, such as a bias.
    """
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    attention: Any = model.get_submodule("model.layers.0.self_attn")
    head_dim = int(attention.head_dim)
    counts = [
        _head_counts(sizes, layer, head_dim) for layer in range(model.config.num_hidden_layers)
    ]
    counts[0] = max(counts[0], (1, 1))
    heads, groups = (tuple(column) for column in zip(*counts, strict=True))
    entries = tuple(_entries(heads, groups, tied=is_tied(model)))
    strange = set(sizes) - {entry.parameter for entry in entries} - _left_out(heads, model)
    if strange:
        raise UnsupportedError(
            f"the model can't be written as GGUF: llama has no {min(strange)}",
            where=f"{type(model).__name__} ({len(strange)} such parameters)",
            hint="a bias or an added module can't be expressed; it runs in transformers (headprune.load)",
        )
    even = len(set(counts)) == 1 and heads[0] > 0
    return Layout("llama" if even else "deci", heads, groups, head_dim, entries)


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


def _entries(heads: tuple[int, ...], groups: tuple[int, ...], *, tied: bool) -> Iterator[Entry]:
    yield Entry("token_embd.weight", "model.embed_tokens.weight")
    for layer, (queries, keys) in enumerate(zip(heads, groups, strict=True)):
        rotated = {"attn_q": queries, "attn_k": keys}
        parts = {**(_ATTENTION if queries else {}), **_FEED_FORWARD}
        for name, path in parts.items():
            parameter = f"model.layers.{layer}.{path}.weight"
            yield Entry(f"blk.{layer}.{name}.weight", parameter, rotated.get(name, 0))
    yield Entry("output_norm.weight", "model.norm.weight")
    if not tied:
        yield Entry("output.weight", "lm_head.weight")


def _left_out(heads: tuple[int, ...], model: PreTrainedModel) -> set[str]:
    """Return the parameters that have no place in the file: a tied output's, and those of attentions without heads."""
    gone = {
        f"model.layers.{layer}.{path}.weight"
        for layer, number in enumerate(heads)
        for path in (() if number else _ATTENTION.values())
    }
    return gone | ({"lm_head.weight"} if is_tied(model) else set())
