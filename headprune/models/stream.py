"""Prune a model on disk without ever having it in memory: tensor by tensor, from file to file.

What is cut, and to which shapes, is known from a model without memory; only the tensors that lose heads are read at all, the
others are copied as bytes. Names, files and dtypes stay those of the source. No file is read or written but one tensor at a time.
"""

import json
import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site, Slice
from headprune.errors import ModelError, warn_missing
from headprune.surgery.cut import cut_tensor
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
    """Write the index of sharded weights: the file of each tensor, and the bytes of all."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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


@dataclass(frozen=True, slots=True)
class Cut:
    """What is cut from one parameter.

    Args:
        name: Its name in the files.
        parameter: Its path in the model.
        shape: The shape that is left.
        item: The dimension that is cut.
        before: Its site before.
        after: And afterwards.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    item: Slice
    before: Site
    after: Site

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the kept part of the parameter."""
        return cut_tensor(tensor, self.item, before=self.before, after=self.after)

    def kept_rows(self, tensor: Tensor) -> Tensor:
        """Return the same, computed otherwise as a proof: the kept runs of the parameter's own rows, put together."""
        parts: list[Tensor] = []
        start = 0
        for run in self.item.runs:
            owners = set(run.owners)
            if owners and not owners & set(self.before.slots):
                continue
            part = tensor.narrow(self.item.dim, start, run.length)
            start += run.length
            if not owners or owners & set(self.after.heads):
                parts.append(part)
            elif owners & set(self.after.padding):
                parts.append(torch.zeros_like(part))
        return torch.cat(parts or [tensor.narrow(self.item.dim, 0, 0)], dim=self.item.dim)


def names_in_memory(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the name in the model of each tensor in the files, by its name there.

    Tensors that it fuses, splits or turns on the way, and those that the model has no use for, are left out.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    # All versions that headprune takes have them: a newer one moved them.
    except ImportError as error:
        warn_missing(str(error.name), consequence="no tensor is renamed when it is streamed")
        known = set(model.state_dict())
        return {name: name for name in names if name in known}
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    tensors = model.state_dict()
    in_memory: dict[str, str] = {}
    for name in names:
        new, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, tensors
        )
        if new not in tensors and name in tensors:
            new, converted = rename_source_key(name, [], [], model.base_model_prefix, tensors)
        if new in tensors and converted is None:
            in_memory[name] = new
    return in_memory


def find_cuts(
    model: PreTrainedModel,
    tensors: Collection[Stored],
    *,
    before: Anatomy,
    after: Anatomy,
) -> tuple[Cut, ...] | str:
    """Return what is cut from each tensor in the files, or the reason why that can't be told."""
    shapes = {stored.name: stored.shape for stored in tensors}
    names_by_parameter: dict[str, list[str]] = {}
    for name, parameter in names_in_memory(model, shapes).items():
        names_by_parameter.setdefault(parameter, []).append(name)
    cuts: list[Cut] = []
    for old, new in zip(before.sites, after.sites, strict=True):
        for item in new.cut_slices() if new != old else ():
            names = names_by_parameter.get(item.parameter, [])
            if len(names) != 1:
                return f"{item.parameter} is not one tensor of its own in the files"
            shape = tuple(model.get_parameter(item.parameter).shape)
            if shapes[names[0]] != shape:
                return f"{names[0]} has the shape {shapes[names[0]]} in the files, not {shape}"
            left = (*shape[: item.dim], item.size(new.slots), *shape[item.dim + 1 :])
            cuts.append(Cut(names[0], item.parameter, left, item, old, new))
    return tuple(cuts)


def rewrite(directory: Path, target: Path, *, cuts: Iterable[Cut]) -> None:
    """Write the weights of ``directory`` to ``target``: the same files, some tensors cut, the others byte for byte."""
    by_name = {cut.name: cut for cut in cuts}
    paths = shards(directory)
    total = sum(_rewrite_file(path, target / path.name, cuts=by_name) for path in paths)
    if paths[0].name != WHOLE:
        files = {stored.name: stored.file.name for stored in stored_tensors(directory)}
        write_index(target, files, total_size=total)


def _rewrite_file(path: Path, target: Path, *, cuts: Mapping[str, Cut]) -> int:
    """Write one file; returns the bytes of its tensors."""
    tensors, metadata = read_header(path)
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for stored in tensors:
        shape = cuts[stored.name].shape if stored.name in cuts else stored.shape
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
            if stored.name in cuts:
                new = cuts[stored.name].apply(stored.read()).contiguous()
                file.write(new.flatten().view(torch.uint8).numpy().data)
            else:
                file.writelines(stored.chunks())
    return end


def wrong_cuts(
    cuts: Iterable[Cut], *, before: Mapping[str, Stored], after: Mapping[str, Stored]
) -> list[str]:
    """Return the names of cut tensors that, read back, aren't bit for bit the kept rows of the source."""
    return [cut.name for cut in cuts if not _is_right(cut, before[cut.name], after.get(cut.name))]


def _is_right(cut: Cut, old: Stored, new: Stored | None) -> bool:
    if new is None:
        return False
    expected, written = cut.kept_rows(old.read()), new.read()
    return (expected.dtype, expected.shape) == (written.dtype, written.shape) and torch.equal(
        expected.flatten().view(torch.uint8), written.flatten().view(torch.uint8)
    )
