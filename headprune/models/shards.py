"""safetensors files read and written one tensor at a time, so that memory never holds more than one."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.errors import ModelError
from headprune.untrusted.weights import INDEX, WHOLE, Stored, read_header, weight_files


class Change(NamedTuple):
    """What becomes of a tensor: the shape it will have, and how it is made from the old one."""

    shape: tuple[int, ...]
    make: Callable[[Tensor], Tensor]


def shards(directory: Path) -> tuple[Path, ...]:
    """Return the files that transformers reads: the one file, or those that the index names.

    Raises:
        ModelError: The index names a file that isn't there, or is damaged.
    """
    files = weight_files(directory)
    if not files:
        raise ModelError(
            f"there is neither {WHOLE} nor {INDEX}",
            where=str(directory),
            hint="fetch the model again",
        )
    return files


def stored_tensors(directory: Path) -> tuple[Stored, ...]:
    """Return every tensor of a model, in the order in which they lie there."""
    return tuple(stored for path in shards(directory) for stored in read_header(path).tensors)


def count_stored(directory: Path) -> int:
    """Return how many numbers the weights of a directory hold."""
    return sum(math.prod(stored.shape) for stored in stored_tensors(directory))


def rewrite(directory: Path, target: Path, *, changes: Mapping[str, Change]) -> None:
    """Write the weights of ``directory`` to ``target``: the same files, some tensors changed, the others byte for byte.

    Args:
        directory: A model.
        target: Where to.
        changes: What becomes of a tensor, by its name in the files.
    """
    paths = shards(directory)
    total = sum(_rewrite_file(path, target / path.name, changes=changes) for path in paths)
    if paths[0].name != WHOLE:
        files = {stored.name: stored.file.name for stored in stored_tensors(directory)}
        write_index(target, files, total_size=total)


def write_index(directory: Path, files: Mapping[str, str], *, total_size: int) -> None:
    """Write the index of sharded weights.

    Args:
        directory: Where to.
        files: The name of its file by the name of each tensor.
        total_size: Bytes of all tensors.
    """
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _rewrite_file(path: Path, target: Path, *, changes: Mapping[str, Change]) -> int:
    """Write one file; returns the bytes of its tensors."""
    tensors, metadata = read_header(path)
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for stored in tensors:
        shape = changes[stored.name].shape if stored.name in changes else stored.shape
        numbers = math.prod(stored.shape)
        size = stored.stop - stored.start
        if shape != stored.shape:
            size = size // numbers * math.prod(shape)
        entries[stored.name] = {
            "dtype": stored.dtype,
            "shape": list(shape),
            "data_offsets": [end, end + size],
        }
        end += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that tensors begin on a multiple of 8
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for stored in tensors:
            if stored.name in changes:
                new = changes[stored.name].make(stored.read()).contiguous()
                file.write(new.flatten().view(torch.uint8).numpy().data)
            else:
                file.writelines(stored.chunks())
    return end


def differing(ones: Iterable[Stored], others: Mapping[str, Stored]) -> list[str]:
    """Return the names of those tensors that aren't the same, bit for bit, among ``others``."""
    return [
        one.name
        for one in ones
        if (other := others.get(one.name)) is None
        or (one.dtype, one.shape, one.stop - one.start)
        != (other.dtype, other.shape, other.stop - other.start)
        or any(a != b for a, b in zip(one.chunks(), other.chunks(), strict=True))
    ]


def untie_as_stored(model: PreTrainedModel, directory: Path) -> None:
    """Give a model without memory the parameters that ``from_pretrained`` would give it where the weights lie in ``directory``.

    Where they don't, or can't be read, the config's word stands.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    try:
        stored = {item.name: item for item in stored_tensors(directory)} if tied else {}
    except ModelError:
        return
    apart = {
        name
        for name, source in tied.items()
        if name in stored
        and source in stored
        and not torch.equal(stored[name].read(), stored[source].read())
    }
    for name in apart:
        home, _, attribute = name.rpartition(".")
        owner = model.get_submodule(home)
        setattr(owner, attribute, nn.Parameter(torch.empty_like(owner.get_parameter(attribute))))
    model.all_tied_weights_keys = {
        name: source for name, source in tied.items() if name not in apart
    }
