"""Pickled weights, as transformers v4 wrote them: read after an explicit yes, and then as tensors alone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from headprune.errors import ModelError, first_line
from headprune.untrusted import lies_within, read_json

_WHOLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"


def pickled_weights(directory: Path) -> tuple[Path, ...]:
    """Return the pickled weights of a directory that has no others, in the order of their names."""
    if any(directory.glob("*.safetensors")):
        return ()
    if (directory / _INDEX).is_file():
        index = read_json(directory / _INDEX, error=ModelError, hint="fetch the file again")
        files = index.get("weight_map") if isinstance(index, dict) else None
        if isinstance(files, dict) and all(isinstance(name, str) for name in files.values()):
            return tuple(directory / name for name in sorted(set(files.values())))
    return (directory / _WHOLE,) if (directory / _WHOLE).is_file() else ()


def rewritten(directory: Path, folder: Path) -> Path:
    """Write a model whose weights are pickled into ``folder``, its weights as safetensors.

    Of the pickles only tensors are read (``weights_only=True``): whatever else they'd do is refused by torch.

    Raises:
        ModelError: A file isn't there, holds something else, or may not be read.
    """
    for path in sorted(directory.glob("*.json")):
        if path.name != _INDEX and path.is_file() and lies_within(directory, path):
            shutil.copyfile(path, folder / path.name)
    files = pickled_weights(directory)
    weight_map: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = dict(_tensors(directory, path))
        weight_map |= dict.fromkeys(tensors, name)
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _tensors(directory: Path, path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file() or not lies_within(directory, path):
        raise ModelError(
            f"{path.name} is no file of the model's own directory",
            where=str(path),
            hint="put the file itself there",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - asked for, tensors alone
    except Exception as error:  # a file can make the reader raise anything
        raise ModelError(
            f"{path.name} holds something else than tensors, or is damaged: {first_line(error)}",
            where=str(path),
            hint="fetch the file again; a file that wants more than tensors isn't read",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path.name} isn't a state of tensors by name",
            where=str(path),
            hint="name the directory of a model that transformers saved",
        )
    # Of each a copy: safetensors takes no two that share memory.
    yield from ((str(name), tensor.contiguous().clone()) for name, tensor in state.items())
