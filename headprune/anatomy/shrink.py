"""Make a config small without breaking what its numbers have to do with each other.

Head counts stay. All widths are divided by one number, in every part of a composite config, so that sums, products and equalities
between them go on holding; layers, experts, vocabulary and images are counted down.
"""

import math
from collections.abc import Iterator
from typing import Any

from headprune.anatomy.exceptions import (
    HEAD_WIDTH,
    HEADS,
    HIDDEN,
    LAYERS,
    NO_WIDTH,
    SMALLER_COUNTS,
    WIDTH,
)

_HEAD_DIM = 8
_FIRST_TEXT_TOKEN = 20
_PATCHES = 4


def shrunk(settings: dict[str, Any], *, layers: int | None, widths: bool) -> dict[str, Any]:
    """Return a copy of a config's settings with fewer layers (None: as many) and, if asked, smaller widths."""
    scale = common_scale(settings) if widths else 1
    return _shrink(settings, layers=layers, scale=scale)


def common_scale(settings: dict[str, Any]) -> int:
    """Return what all widths are divided by: as much as the narrowest head bears, and only what divides all of them."""
    head_dims = list(_head_dims(settings))
    if not head_dims:
        return 1
    common = math.gcd(*head_dims, *_widths(settings, least=min(head_dims)))
    lawful = [
        divisor
        for divisor in range(1, common + 1)
        if common % divisor == 0
        and all(width // divisor >= _HEAD_DIM and width // divisor % 2 == 0 for width in head_dims)
    ]
    return max(lawful, default=1)


def _head_dims(settings: dict[str, Any]) -> Iterator[int]:
    for part in _parts(settings):
        for name, value in part.items():
            if type(value) is int and HEAD_WIDTH.search(name):
                yield value
        hidden = next((part[name] for name in HIDDEN if type(part.get(name)) is int), None)
        for name, heads in part.items():
            if (
                hidden
                and HEADS.search(name)
                and type(heads) is int
                and heads
                and hidden % heads == 0
            ):
                yield hidden // heads


def _widths(settings: dict[str, Any], *, least: int) -> Iterator[int]:
    for part in _parts(settings):
        for name, value in part.items():
            if _is_width(name):
                numbers = value if isinstance(value, list) else [value]
                yield from (number for number in numbers if type(number) is int and number >= least)


def _parts(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings and those of the configs inside."""
    yield settings
    for value in settings.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value)


def _is_width(name: str) -> bool:
    return bool(WIDTH.search(name)) and not NO_WIDTH.search(name)


def _shrink(settings: dict[str, Any], *, layers: int | None, scale: int) -> dict[str, Any]:
    counts = {
        value for name, value in settings.items() if LAYERS.search(name) and type(value) is int
    }
    counts -= {len(settings.get("depths") or ())}  # these are stages, and their number stays
    return {
        name: _shrink_one(name, value, settings, layers=layers, counts=counts, scale=scale)
        for name, value in settings.items()
    }


def _shrink_one(
    name: str,
    value: Any,
    settings: dict[str, Any],
    *,
    layers: int | None,
    counts: set[int],
    scale: int,
) -> Any:
    if isinstance(value, dict):
        if "model_type" in value:
            return _shrink(value, layers=layers, scale=scale)
        return {key: _shrink_section(str(key), item, scale) for key, item in value.items()}
    if isinstance(value, list):
        return _shrink_list(name, value, layers=layers, counts=counts, scale=scale)
    return (
        _shrink_int(name, value, settings, layers=layers, scale=scale)
        if type(value) is int
        else value
    )


def _shrink_int(
    name: str, value: int, settings: dict[str, Any], *, layers: int | None, scale: int
) -> int:
    for pattern, limit in ((LAYERS, layers), *SMALLER_COUNTS):
        if pattern.search(name):
            return value if limit is None else min(value, limit)
    if name.endswith(("_token_id", "_token_index")):
        return value if value < _FIRST_TEXT_TOKEN else _special_id(name, settings)
    patch = settings.get("patch_size")
    stages = bool(settings.get("depths"))  # each halves the image; the last needs a window
    if name == "image_size" and type(patch) is int and scale > 1 and not stages:
        return min(value, patch * _PATCHES)
    narrower = (_is_width(name) or name == "rotary_dim") and value % scale == 0
    return value // scale if narrower else value


def _shrink_list(
    name: str, value: list[Any], *, layers: int | None, counts: set[int], scale: int
) -> list[Any]:
    if name == "depths" and layers is not None:
        return [min(depth, layers) for depth in value]
    if layers is not None and len(value) in counts:  # one entry per layer, such as layer_types
        value = value[:layers]
    if _is_width(name) and all(type(item) is int and item % scale == 0 for item in value):
        return [item // scale for item in value]
    return value


def _shrink_section(name: str, value: Any, scale: int) -> Any:
    if name == "mrope_section" and isinstance(value, list):
        return [item // scale for item in value]
    return value


def _special_id(name: str, settings: dict[str, Any]) -> int:
    """Return an id of its own for each special token that no longer fits the vocabulary."""
    names = sorted(key for key in settings if key.endswith(("_token_id", "_token_index")))
    return 4 + names.index(name) % (_FIRST_TEXT_TOKEN - 4)
