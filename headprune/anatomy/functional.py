"""Linear layers that are never called as modules: their weights are passed to a function, which calls ``F.linear``.

So do ``torch.nn.MultiheadAttention`` and whatever else calls ``F.multi_head_attention_forward``.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class LinearInputs(TorchFunctionMode):
    """While it is entered, ``change(input, weight)`` says what every call of ``F.linear`` in this thread reads instead.

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
        if func is functional.multi_head_attention_forward:
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


def _undispatched(func: Any) -> FunctionType:
    """Return a function of torch without its first lines, which hand the call to the mode: its own calls are to be seen."""
    names = {**func.__globals__, "has_torch_function": lambda _tensors: False}
    return FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
