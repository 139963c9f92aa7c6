"""Headers of safetensors files and indices of sharded ones, checked before a library reads them."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from safetensors import safe_open

from headprune.errors import ModelError, first_line
from headprune.untrusted.directories import kind_by_content
from headprune.untrusted.documents import parse_json, read_json, readable

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NAMED = "transformers_weights"
# As the format has it.
_MOST_BYTES = 100_000_000
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
_AGAIN = "fetch the file again"
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor where it lies: bytes ``start`` to ``stop`` of ``file``; ``dtype`` as the format names it (``BF16``)."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> "Tensor":
        """Return the tensor; the file is mapped only as long as somebody holds it."""
        with safe_open(self.file, "pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes, a few at a time."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield chunk


class Header(NamedTuple):
    """What a file holds, in the order in which it lies there."""

    tensors: tuple[Stored, ...]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        ModelError: It can't be read, or isn't what the format allows.
    """
    with readable(path, error=ModelError, hint=_AGAIN), path.open("rb") as file:
        if other := kind_by_content(file.read(64)):
            raise ModelError(f"{path.name} is {other[0]}", where=str(path), hint=other[1])
        file.seek(0)
        try:
            return _parsed(path, file)
        except ValueError as error:
            raise ModelError(
                f"{path.name} is damaged: {first_line(error)}", where=str(path), hint=_AGAIN
            ) from error


def _parsed(path: Path, file: BinaryIO) -> Header:
    size = path.stat().st_size
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > min(size - 8, _MOST_BYTES):
        raise ValueError("its header is longer than the file")
    try:
        content = parse_json(file.read(length))
    except ValueError as error:
        raise ValueError(f"its header can't be read: {first_line(error)}") from error
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its header's __metadata__ is no mapping of texts")
    tensors = [_stored(path, name, value, first=8 + length) for name, value in content.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(
                f"{tensor.name} doesn't begin where the tensor before it ends (data_offsets)"
            )
        end = tensor.stop
    if end != size:
        raise ValueError(f"it has {size} bytes and should have {end}")
    return Header(tuple(tensors), metadata)


def _stored(path: Path, name: str, value: Any, *, first: int) -> Stored:
    """Return one entry."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise ValueError(f"its header doesn't describe {name} (dtype, shape, data_offsets)")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name} has the dtype {dtype!r}, which isn't known")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has the shape {shape!r} and the data_offsets {offsets!r}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(
            f"{name} has {offsets[1] - offsets[0]} bytes, and its shape and dtype need {bits // 8}"
        )
    start, stop = (first + offset for offset in offsets)
    return Stored(path, name, dtype, tuple(shape), start, stop)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that a load reads, and no others that lie beside them; none where it would find nothing.

    Raises:
        ModelError: An index is damaged, or names something that isn't a file of the directory.
    """
    return tuple(
        directory / name for name in weight_names(directory) if (directory / name).is_file()
    )


def weight_names(directory: Path, *, fetched: bool = True) -> tuple[str, ...]:
    """Return the names of the weights: the file that the config names, the one file, or those that the index lists.

    With ``fetched``, they should be there already.

    Raises:
        ModelError: An index is damaged, or names something that isn't a file of the directory.
    """
    config = directory / "config.json"
    named = read_json(config, error=ModelError).get(_NAMED) if config.is_file() else None
    if isinstance(named, str) and Path(named).name == named:
        is_index = named.endswith(".index.json")
        return indexed_files(directory, named, fetched=fetched) if is_index else (named,)
    if (directory / WHOLE).is_file():
        indexed_files(directory, fetched=False)
        return (WHOLE,)
    return indexed_files(directory, fetched=fetched)


def indexed_files(directory: Path, index: str = INDEX, *, fetched: bool = True) -> tuple[str, ...]:
    """Return the names of the files that an index lists; none where there is no such index.

    With ``fetched``, they should be there already.

    Raises:
        ModelError: The index is damaged, or names something that isn't a file of the directory.
    """
    path = directory / index
    if not path.is_file():
        return ()
    again = "fetch the model again"
    document = read_json(path, error=ModelError, hint=again)
    listed = document.get("weight_map")
    # transformers reads the metadata of an index of safetensors files; an index of pickled ones may have none.
    lacks_metadata = "metadata" not in document and ".bin." not in index
    if not isinstance(listed, dict) or not listed or lacks_metadata:
        lacks = "metadata" if listed else "weight_map"
        raise ModelError(f"{index} has no {lacks}", where=str(path), hint=again)
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ModelError(
                f"the index names {name!r}, which is no file of its own directory",
                where=str(path),
                hint="fetch the model from somebody you trust",
            )
        if fetched and not (directory / name).is_file():
            raise ModelError(
                f"the index names {name}, which isn't there", where=str(path), hint=again
            )
    return tuple(sorted(set(listed.values())))
