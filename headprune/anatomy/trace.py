"""Record one forward: which attentions ran, with how many heads, and which linear layers were called after them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

_ATTENTION_CLASS = re.compile(r"Attention|Attn")


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the attention interface: its module, its head counts, the width of one head, its output."""

    module: nn.Module
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    output: Tensor


@dataclass(frozen=True, eq=False)
class LinearCall:
    """One call of a linear layer, with its input."""

    module: nn.Linear | Conv1D
    input: Tensor


def in_features(linear: nn.Module) -> int:
    """Return the input width of a linear layer (transformers' Conv1D keeps its weight as [in, out])."""
    weight = linear.get_parameter("weight")
    return weight.shape[0] if isinstance(linear, Conv1D) else weight.shape[1]


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer whose rows can be cut."""
    return isinstance(module, (nn.Linear, Conv1D))


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module's class is named like an attention and it has linear layers of its own."""
    return bool(_ATTENTION_CLASS.search(type(module).__name__)) and (
        sum(is_linear(child) for child in module.modules()) >= 2
    )


def record(
    model: PreTrainedModel, inputs: Mapping[str, Tensor]
) -> list[AttentionCall | LinearCall]:
    """Run ``model`` once and return its attention and linear calls in order. The outputs keep their graph."""
    events: list[AttentionCall | LinearCall] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, args: events.append(LinearCall(module, args[0]))
        )
        for module in model.modules()
        if is_linear(module)
    ]
    try:
        with torch.enable_grad(), _recorded_attention(events):
            model(**inputs, use_cache=False) if takes_cache(model) else model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return events


def takes_cache(model: PreTrainedModel) -> bool:
    """Whether the model would fill a key/value cache that nobody reads."""
    return bool(getattr(model.config, "use_cache", False))


@contextmanager
def _recorded_attention(events: list[AttentionCall | LinearCall]) -> Iterator[None]:
    """Note every call that goes through transformers' attention interface.

    Registering an attention function of our own would need ``_supports_attention_backend``, which many models that do go
    through the interface don't declare; so the look-up itself is wrapped, for the length of this block only.
    """
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Any) -> Any:
        function = original(self, name, default)

        def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kw: Any) -> Any:
            result = function(module, query, key, *args, **kw)
            if query.dim() == 4:
                output = result[0]
                events.append(
                    AttentionCall(module, query.shape[1], key.shape[1], output.shape[-1], output)
                )
            return result

        return attention

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]
