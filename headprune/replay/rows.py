"""Whatever a model takes or puts out, row by row: repeated for several masks, taken apart again."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of tuples, lists and mappings with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map_tensors(item, change) for item in value)
    if isinstance(value, list):
        return [map_tensors(item, change) for item in value]
    if isinstance(value, dict):  # a ModelOutput is one, and is rebuilt as its own class
        return type(value)(**{key: map_tensors(item, change) for key, item in value.items()})
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nest of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def repeat(value: Any, *, copies: int, rows: int) -> Any:
    """Repeat whatever has the rows in dimension 0."""

    def repeated(tensor: Tensor) -> Tensor:
        if copies == 1 or tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        return tensor.repeat(copies, *[1] * (tensor.dim() - 1))

    return map_tensors(value, repeated)


def part(value: Any, place: int, *, copies: int, rows: int) -> Any:
    """Return the rows of one of the copies."""

    def cut(tensor: Tensor) -> Tensor:
        if copies == 1 or tensor.dim() == 0 or tensor.shape[0] != copies * rows:
            return tensor
        return tensor[place * rows : (place + 1) * rows]

    return map_tensors(value, cut)
