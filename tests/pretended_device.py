"""A device that isn't there: its tensors compute on the CPU, don't meet the CPU's own, and note when a GPU's host would wait.

So tests for GPUs find most of their mistakes where there is none: a tensor that was made on the wrong device, a number that the
host waits for in a loop.
"""

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretended"
DEVICE: torch.device
"""There once :func:`set_up` has run."""
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
WAITS = []
"""What a GPU's host would have waited for, in order."""

_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}


def set_up():
    """Let torch know the device; once a process, before anything is differentiated."""
    global DEVICE, _KERNELS
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    DEVICE = torch.device(NAME, 0)
    # What torch.tensor(..., device=...) calls past any mode.
    _KERNELS = torch.library.Library("aten", "IMPL", "PrivateUse1")
    _KERNELS.impl("empty_strided", _empty)
    _KERNELS.impl("_copy_from", _copy_from)


def _empty(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    del layout, device, pin_memory
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    if not non_blocking:
        WAITS.append("a copy to the device")
    target.inner.copy_(source)
    return target


class There(torch.Tensor):
    """A tensor on the device; ``inner`` holds the numbers."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self):
        return self.inner.data_ptr()

    def __repr__(self):
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """While it lasts, tensors can be made on the device."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def _inner(value):
    if isinstance(value, There):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _run(func, args, kwargs):
    return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))


def _is_here(value):
    return isinstance(value, torch.Tensor) and not isinstance(value, There)


def _dispatch(func, args, kwargs):
    values, _ = tree_flatten((args, kwargs))
    there = any(isinstance(value, There) for value in values)
    device = kwargs.get("device")
    goes_there = device is not None and torch.device(device).type == NAME
    if func is _aten._to_copy.default:
        return _copied(func, args, kwargs, to=goes_there if device is not None else there)
    if func is _aten.copy_.default:
        if isinstance(args[0], There) != isinstance(args[1], There):
            WAITS.append("copy_")
        _run(func, args, kwargs)
        return args[0]
    if not there and not goes_there:
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if there:
        _see_where_tensors_lie(func, args, kwargs, name)
    if name in _WAITING:
        WAITS.append(name)
    found = _run(func, args, kwargs)
    if func._schema.is_mutable and name.endswith("_"):
        return args[0]
    if isinstance(kwargs.get("out"), There):
        return kwargs["out"]
    return tree_map(lambda value: There(value) if isinstance(value, torch.Tensor) else value, found)


def _see_where_tensors_lie(func, args, kwargs, name):
    """As on a GPU: tensors of the CPU are refused, but for single numbers, and for indices, which are waited for."""
    values, _ = tree_flatten((args, kwargs))
    indexes = func in _INDEXING and isinstance(args[0], There)
    indices = tree_flatten(args[1])[0] if indexes else []
    others = tree_flatten((args[2:], kwargs))[0] if indexes else values
    if any(_is_here(value) and value.dim() for value in others):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if any(_is_here(index) for index in indices):
        WAITS.append(f"{name} by an index on the CPU")
    if any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices):
        WAITS.append(f"{name} by a mask")


def _copied(func, args, kwargs, *, to):
    came_from_there = isinstance(args[0], There)
    if came_from_there != to and not kwargs.get("non_blocking"):
        WAITS.append("a copy to the device" if to else "a copy to the CPU")
    found = _run(func, args, kwargs)
    if came_from_there != to and found is _inner(args[0]):
        found = found.clone()
    return There(found) if to else found
