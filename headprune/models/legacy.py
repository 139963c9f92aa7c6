"""Checkpoints that transformers v4 pruned: ``config.pruned_heads`` says which heads its ``prune_heads`` took.

transformers v5 reads that setting no longer, and refuses the small weights. Here it becomes our record.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.errors import ModelError, first_line
from headprune.heads import HeadId
from headprune.inspection import inspect
from headprune.models.describe import remote_config
from headprune.models.stream import write_index
from headprune.surgery.cut import cut
from headprune.untrusted.directories import lies_within
from headprune.untrusted.weights import indexed_files


def pruned_heads(config: PreTrainedConfig) -> dict[int, tuple[int, ...]]:
    """Return what transformers v4 removed, by layer (empty for any other model)."""
    by_layer: Any = getattr(config, "pruned_heads", None)
    if not isinstance(by_layer, Mapping) or hasattr(config, "headprune"):
        return {}
    return {
        int(layer): tuple(sorted(map(int, heads))) for layer, heads in by_layer.items() if heads
    }


def refuse_pruned_parts(config: PreTrainedConfig) -> None:
    """Refuse a model of which transformers v4 pruned a part: only the part's own config says so, and nothing reads that.

    Raises:
        ModelError: It did.
    """
    for name in getattr(type(config), "sub_configs", ()):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig) and pruned_heads(part):
            raise ModelError(
                f"transformers v4 pruned the {name} of this {config.model_type} model, and such a model can't be read",
                where=f"config.json ({name}.pruned_heads)",
                hint=f"convert the {name} alone, saved as a model of its own, or prune the whole model anew",
            )


def converted_config(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """Return the config with which a checkpoint that transformers v4 pruned loads; no weights are read.

    Raises:
        ModelError: The heads it names are not there, or it has several stacks that could be meant.
    """
    with quiet(), torch.device("meta"):
        model = kind._from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)
    anatomy = inspect(model)
    stacks = {site.id.stack for site in anatomy.sites if site.id.kind == "self"}
    if len(stacks) > 1:
        raise ModelError(
            f"config.pruned_heads doesn't say which heads of a {config.model_type} model are meant: "
            f"it has attentions in {', '.join(sorted(stacks))}",
            where="config.json (pruned_heads)",
            hint="prune the whole model anew: headprune prune MODEL --keep 0.7",
        )
    layers = {site.id.layer: site.id for site in anatomy.sites if site.id.kind == "self"}
    named = pruned_heads(config)
    removed = {
        HeadId(layers[layer], head)
        for layer, heads in named.items()
        if layer in layers
        for head in heads
    }
    missing = removed - set(anatomy.heads)
    if missing or len(removed) != sum(map(len, named.values())):
        raise ModelError(
            f"config.pruned_heads names heads that a {config.model_type} model of this size doesn't have",
            where="config.json (pruned_heads)",
            hint="check that config.json belongs to the weights",
        )
    converted = remote_config(model, cut(model, anatomy, remove=removed))
    converted.pruned_heads = {}
    return converted


_WHOLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"


def pickled_weights(directory: Path) -> tuple[Path, ...]:
    """Return the pickled weights of a directory that has no others, in the order of their names.

    Raises:
        ModelError: Their index is damaged, or names something that isn't a file of the directory.
    """
    if any(directory.glob("*.safetensors")):
        return ()
    one_file = (_WHOLE,) if (directory / _WHOLE).is_file() else ()
    names = indexed_files(directory, _INDEX, fetched=False) or one_file
    return tuple(directory / name for name in names)


def rewritten(directory: Path, folder: Path) -> Path:
    """Write a model whose weights are pickled into an empty folder, its weights as safetensors.

    Of the pickles only tensors are read (``weights_only=True``): whatever else they'd do is refused by torch.

    Returns:
        ``folder``.

    Raises:
        ModelError: A file isn't there, holds something else, or may not be read.
    """
    for path in sorted(directory.glob("*.json")):
        if path.name != _INDEX and path.is_file() and lies_within(directory, path):
            shutil.copyfile(path, folder / path.name)
    pickles = pickled_weights(directory)
    files: dict[str, str] = {}
    total = 0
    for number, path in enumerate(pickles, start=1):
        name = f"model-{number:05}-of-{len(pickles):05}.safetensors"
        tensors = dict(_tensors(directory, path))
        files |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / name, metadata={"format": "pt"})
    write_index(folder, files, total_size=total)
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
