"""Read the weights of a CTranslate2 ``model.bin``: little-endian, one flat list of named arrays."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._position)
        self._position += struct.calcsize(f"<{code}")
        return int(value)

    def text(self) -> str:
        return self._take(self.number("H")).rstrip(b"\0").decode()

    def array(self) -> NDArray[np.generic]:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = _DTYPES[self.number("B")]
        return np.frombuffer(self._take(self.number("I")), dtype).reshape(shape)

    def _take(self, length: int) -> bytes:
        self._position += length
        return self._data[self._position - length : self._position]


def read_weights(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a CTranslate2 model by name."""
    reader = _Reader(path.read_bytes())
    reader.number("I")  # version of the format
    reader.text()  # kind of model
    reader.number("I")  # revision of that kind
    weights: dict[str, NDArray[np.generic]] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        weights[name] = reader.array()
    for _ in range(reader.number("I")):
        alias = reader.text()
        weights[alias] = weights[reader.text()]
    return weights
