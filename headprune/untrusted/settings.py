"""``config.json`` before a library builds anything from it: types that are read, sizes that are plausible, no code named."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from headprune.errors import ModelError

# Several times of what there is: 128 layers, 16 thousand experts, 20 million words.
_MOST_LABELS = 100_000
_LAYERS = re.compile(r"(layers?|blocks|depths?|stages)$")
_LABELS = re.compile(r"labels$")
_ENTRIES = re.compile(r"(experts|heads|n_head|groups|kernel\w*|channels)$")
_SIZES = re.compile(
    r"vocab|hidden|size|dim|embd|embed|d_model|d_ff|ffn|inner|width|positions|^num_|^n_|length"
)
_LIMITS = ((_LAYERS, 500), (_LABELS, _MOST_LABELS), (_ENTRIES, 1_000_000), (_SIZES, 100_000_000))
# Its table of positions is computed in Python, number by number.
_MOST_POSITIONS = {"marian": 65_536}
# Numbers of parts and widths; elsewhere a negative number is a mark for "the last layer but one", and the like.
_COUNTS = re.compile(
    r"heads?$|^(n|num|\w+_num)_\w*(layers?|blocks|labels)$|^(encoder|decoder)_layers$"
    r"|^(hidden|intermediate|vocab|embedding)_size$|^(d_model|d_ff|d_kv|dim|n_embd|head_dim|n_positions|max_position_embeddings)$"
)
_MOST_NEGATIVE = -1_000
_LARGEST = 2**53


Count = Annotated[int, Field(ge=0, le=100_000_000)]
Run = Annotated[list[Count], Field(min_length=2, max_length=2)]
_Layer = Annotated[str, Field(pattern=r"^[0-9]+$")]
_Labels = Annotated[dict[str, Any], Field(max_length=_MOST_LABELS)]
_FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
_TYPES = {
    name: (TypeAdapter[Any](kind), expected)
    for names, kind, expected in (
        (("architectures",), list[str], "a list of class names"),
        (("headprune", "auto_map", "quantization_config"), dict[str, Any], "an object"),
        (("pruned_heads",), dict[_Layer, list[NonNegativeInt]], "lists of heads by layer"),
        (("id2label", "label2id"), _Labels, f"an object of at most {_MOST_LABELS:,} classes"),
        (("dtype", "torch_dtype"), str, "the name of a dtype"),
        (("transformers_weights",), _FileName, "a file of the directory"),
    )
    for name in names
}


class _Spread(BaseModel):
    model_config = ConfigDict(extra="allow")

    size: Count
    kept: Annotated[list[Run], Field(max_length=100_000)]


class _Site(BaseModel):
    shapes: dict[str, list[Count]]
    attributes: dict[str, dict[str, int]]
    spread: dict[str, _Spread]
    unfolded: dict[str, dict[str, _Spread]] = {}


class _Record(BaseModel):
    """What earlier pruning left, as ``config.json`` has it under ``headprune``."""

    removed: list[str]
    original: dict[str, Count] = {}
    source: dict[str, str | None] | None = None
    sites: dict[str, _Site] = {}


def check_settings(settings: dict[str, Any], *, where: str) -> None:
    """Refuse a ``config.json`` with values that no model has.

    Raises:
        ModelError: A value has the wrong type, a size is absurd, or code of somebody else is named.
    """
    for name, (kind, expected) in _TYPES.items():
        value = settings.get(name)
        try:
            if value is not None:
                kind.validate_python(value, strict=True)
        except ValidationError as error:
            raise _wrong(name, value, f"is not {expected}", where=where) from error
    positions = _MOST_POSITIONS.get(str(settings.get("model_type")), _LARGEST)
    for name, value in _numbers(settings):
        _refuse_absurd(name, value, positions=positions, where=where)
    for name, value in pairs(settings):
        if name.removesuffix("_internal").endswith("implementation") and "/" in str(value):
            raise _wrong(name, value, "names code from the hub, which isn't run", where=where)
    _refuse_contradicting_classes(settings, where=where)
    record = settings.get("headprune")
    if record and record.get("format", 1) == 1:
        _check_record(record, where=where)


def class_names(settings: dict[str, Any]) -> dict[int, str] | None:
    """Return the names of the classes by index; None where a config names none: ``LABEL_0, ...`` are no names."""
    named, indexed = _id2label(settings), _label2id(settings)
    if named is None and indexed is None:
        return None
    return named or {index: name for name, index in sorted((indexed or {}).items(), key=str)}


def _id2label(settings: dict[str, Any]) -> dict[int, str] | None:
    names = {int(i): str(name) for i, name in (settings.get("id2label") or {}).items()}
    return None if all(name == f"LABEL_{i}" for i, name in names.items()) else names


def _label2id(settings: dict[str, Any]) -> dict[str, int] | None:
    indices = {str(name): int(i) for name, i in (settings.get("label2id") or {}).items()}
    return None if all(name == f"LABEL_{i}" for name, i in indices.items()) else indices


def _refuse_contradicting_classes(settings: dict[str, Any], *, where: str) -> None:
    """Refuse ``id2label`` and ``label2id`` that contradict each other."""
    try:
        named, indexed = _id2label(settings), _label2id(settings)
    except (TypeError, ValueError) as error:
        maps = {name: settings.get(name) for name in ("id2label", "label2id")}
        raise _wrong("id2label, label2id", maps, "have no whole numbers", where=where) from error
    for name, index in (indexed or {}).items() if named else ():
        other = (named or {}).get(index)
        if other is None or other.casefold() != name.casefold():
            raise ModelError(
                f"the config's label2id says that {name!r} is class {index}, and its id2label calls class {index} {other!r}",
                where=f"{where} (id2label, label2id)",
                hint="say in id2label which class is which, and take label2id out",
            )


def _refuse_absurd(name: str, value: int, *, positions: int, where: str) -> None:
    limit = next((most for pattern, most in _LIMITS if pattern.search(name)), _LARGEST)
    if name.endswith(("_token_id", "_token_index")):
        limit = _LARGEST
    elif "position" in name:
        limit = min(limit, positions)
    if value > limit:
        raise _wrong(name, value, f"is more than any model has (at most {limit:,})", where=where)
    if value < (0 if _COUNTS.search(name) else _MOST_NEGATIVE):
        raise _wrong(name, value, "is negative", where=where)


def _check_record(record: dict[str, Any], *, where: str) -> None:
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("headprune", *first["loc"])))
        raise _wrong(key, first["input"], f"can't be: {first['msg']}", where=where) from error


def _wrong(name: str, value: Any, what: str, *, where: str) -> ModelError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return ModelError(
        f"the config's {name} ({shown}) {what}",
        where=f"{where} ({name})",
        hint="repair config.json, or fetch the model again",
    )


def pairs(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every setting, those of the configs inside too."""
    level = [settings]
    while level:
        inside: list[dict[str, Any]] = []
        for part in level:
            for name, value in part.items():
                yield name, value
                items = value if isinstance(value, list) else [value]
                inside += [item for item in items if isinstance(item, dict)]
        level = inside


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every integer, the items of lists too."""
    for name, value in pairs(settings):
        for item in value if isinstance(value, list) else [value]:
            if type(item) is int:
                yield name, item
