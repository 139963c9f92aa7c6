"""Record one forward: which attentions ran, with how many heads, and which layers were called after them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.exceptions import ATTENTION_CLASS, NORM_CLASS
from headprune.anatomy.sites import Call
from headprune.errors import warn_missing

CACHE_NAMES = ("cache", "past_key_values")
"""What a forward calls the cache that it takes and returns: from transformers 5.24 on, and before."""
_ASKS_FOR_MODE = "has_torch_function"


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the attention interface: its module, its head counts, the width of one head, its output."""

    module: nn.Module
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    output: Tensor


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a linear layer or a norm, with its input."""

    module: nn.Module
    input: Tensor
    called: Call = "module"


@dataclass(eq=False)
class Span:
    """One call of a module that looks like an attention: which layer calls happened inside it, and its output."""

    module: nn.Module
    start: int
    stop: int = -1
    output: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """What happened in one forward, in order."""

    calls: list[AttentionCall | LayerCall] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


def input_dimension(linear: nn.Module) -> int:
    """Return which dimension of a linear layer's weight is its input (transformers' Conv1D keeps it as [in, out])."""
    return 0 if isinstance(linear, Conv1D) else 1


def in_features(linear: nn.Module) -> int:
    """Return the input width of a linear layer."""
    return linear.get_parameter("weight").shape[input_dimension(linear)]


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer whose rows can be cut."""
    return isinstance(module, (nn.Linear, Conv1D))


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module's class is named like an attention and it has linear layers of its own."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return bool(ATTENTION_CLASS.search(type(module).__name__)) and (
        sum(is_linear(child) for child in module.modules()) >= 2
    )


def record(model: nn.Module, inputs: Mapping[str, Any]) -> Recording:
    """Run ``model`` once and return its attention and layer calls in order. Their tensors keep their graph."""
    recording = Recording()
    handles = [handle for module in model.modules() for handle in _hooks(module, recording)]
    try:
        with (
            torch.enable_grad(),
            _recorded_attention(recording.calls),
            LinearInputs(_noting(model, recording.calls)),
        ):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return recording


def takes_cache(model: nn.Module) -> bool:
    """Whether the model would fill a key/value cache that nobody reads."""
    return bool(getattr(getattr(model, "config", None), "use_cache", False))


def _hooks(module: nn.Module, recording: Recording) -> Iterator[Any]:
    calls, spans = recording.calls, recording.spans
    is_norm = NORM_CLASS.search(type(module).__name__) and not any(module.children())
    if is_linear(module) or is_norm:

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                calls.append(LayerCall(module, args[0]))

        yield module.register_forward_pre_hook(note)
    if looks_like_attention(module):

        def enter(module: nn.Module, _args: Any) -> None:
            spans.append(Span(module, len(calls)))

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            open_ = next(span for span in reversed(spans) if span.module is module)
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            open_.stop = len(calls)
            open_.output = first if isinstance(first, Tensor) else None

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)


def _noting(
    model: nn.Module, calls: list[AttentionCall | LayerCall]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Note the calls of linear layers that aren't called as modules: their weights are passed to a function."""
    layers = {child.get_parameter("weight"): child for child in model.modules() if is_linear(child)}

    def note(input: Tensor, weight: Tensor) -> Tensor:
        layer = layers.get(weight)  # type: ignore[call-overload]
        noted = (call for call in reversed(calls) if call.module is layer)
        if layer is not None and not any(
            isinstance(call, LayerCall) and call.called == "module" for call in noted
        ):
            calls.append(LayerCall(layer, input, "function"))
        return input

    return note


@contextmanager
def _recorded_attention(calls: list[AttentionCall | LayerCall]) -> Iterator[None]:
    """Note every call that goes through transformers' attention interface.

    Registering an attention function of our own would need ``_supports_attention_backend``, which many models that do go
    through the interface don't declare; so the look-up itself is wrapped, for the length of this block only.
    """
    original = getattr(AttentionInterface, "get_interface", None)
    if original is None:
        consequence = "attentions are told by the names of their classes alone"
        warn_missing("transformers.AttentionInterface.get_interface", consequence=consequence)
        yield
        return

    def get_interface(self: AttentionInterface, name: str, default: Any) -> Any:
        function = original(self, name, default)

        def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kw: Any) -> Any:
            result = function(module, query, key, *args, **kw)
            if query.dim() == 4:
                output = result[0]
                calls.append(
                    AttentionCall(module, query.shape[1], key.shape[1], output.shape[-1], output)
                )
            return result

        return attention

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]


class LinearInputs(TorchFunctionMode):
    """While it is entered, ``change(input, weight)`` says what every call of ``F.linear`` in this thread reads instead.

    It reaches linear layers that are never called as modules because their weights are passed to a function, as
    ``torch.nn.MultiheadAttention`` and whatever else calls ``F.multi_head_attention_forward`` do.
    An active mode also keeps ``torch.nn.MultiheadAttention`` off its fused kernel, which calls nothing.
    """

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, which torch calls with this mode switched off."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(self.change, *args, **kwargs)
        if func is functional.multi_head_attention_forward and _is_dispatching(func):
            with self:
                return _undispatched(func)(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(
    change: Callable[[Tensor, Tensor], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    return functional.linear(change(input, weight), weight, bias)


def _is_dispatching(func: Any) -> bool:
    """Whether torch's function asks, by the name that is known here, for the mode that it is called under."""
    if _ASKS_FOR_MODE in func.__globals__:
        return True
    consequence = "attentions that pass their weights to a function are neither found nor masked"
    warn_missing(f"{func.__module__}.{_ASKS_FOR_MODE}", consequence=consequence)
    return False


def _undispatched(func: Any) -> FunctionType:
    """Return a function of torch without its first lines, which hand the call to the mode: its own calls are to be seen."""
    names = {**func.__globals__, _ASKS_FOR_MODE: lambda _tensors: False}
    return FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
