"""safetensors files read and written one tensor at a time, so that memory never holds more than one."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from headprune.errors import ModelError
from headprune.untrusted.weights import INDEX, WHOLE, Stored, read_header, weight_files


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


def write_index(directory: Path, files: Mapping[str, str], *, total_size: int) -> None:
    """Write the index of sharded weights.

    Args:
        directory: Where to.
        files: The name of its file by the name of each tensor.
        total_size: Bytes of all tensors.
    """
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def differing(ones: Iterable[Stored], others: Mapping[str, Stored]) -> list[str]:
    """Return the names of those tensors that aren't the same, bit for bit, among ``others``.

    Args:
        ones: Tensors of one directory.
        others: Tensors of another, by name.
    """
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

    Args:
        model: A model on the meta device; it is changed.
        directory: Where its weights lie, perhaps.
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
