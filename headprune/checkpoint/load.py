"""Load a model, pruned or not, without running any file of its directory."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from headprune.anatomy.clone import differs_by_layer, quiet
from headprune.checkpoint.legacy import converted_config, pruned_heads, refuse_pruned_parts
from headprune.checkpoint.manifest import check_manifest
from headprune.checkpoint.save import auto_classes
from headprune.errors import (
    CheckpointError,
    HeadpruneError,
    MemoryLimitError,
    ModelError,
    first_line,
    is_out_of_memory,
)
from headprune.models import ModelSource, choose_device, choose_dtype, find
from headprune.placement import count_parameters
from headprune.surgery import modeling_headprune
from headprune.untrusted import read_header

# Heads and poolers that a task adds, and tables that are computed.
_SLACK = 10_000_000
_MOST_BYTES_OF_TABLES = 4_000_000_000


def load(
    directory: str | Path,
    *,
    auto_class: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a model that headprune (or transformers) saved; no ``trust_remote_code`` is needed.

    Args:
        directory: Where it lies.
        auto_class: Which ``AutoModel...`` to load it as; by default the class it was saved as.
        device: ``auto``, ``cpu``, ``cuda``, ..., or ``spread``: over all GPUs, and the CPU where they are too small.
        dtype: ``auto`` is the dtype it was saved in.
        attn_implementation: ``eager``, ``sdpa``, ...; by default what transformers chooses.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: It can't be loaded as what was asked for.
    """
    source = find(str(directory))
    return load_model(
        source,
        auto_class=auto_class,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )


def load_model(
    source: ModelSource,
    *,
    auto_class: str | None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load the model that was found, in eval mode; every weight must be there and used.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: It can't be loaded as ``auto_class``.
    """
    options: dict[str, Any] = {}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if device == "spread":
        options["device_map"] = "auto"
    model, _info = _load(source, auto_class, dtype=choose_dtype(dtype), **options)
    if device == "spread":
        spread: PreTrainedModel = model.eval()
        return spread
    chosen = choose_device(device)
    try:
        loaded: PreTrainedModel = model.to(chosen).eval()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _unloadable(error, source) from error
    return loaded


def load_shapes(source: ModelSource) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a model as the class it was saved as, names, shapes and dtypes only: on the meta device, no number is read.

    Returns:
        The model, and what loading complained of.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: The weights aren't those of the config.
    """
    model, info = _load(source, None, dtype="auto", device_map="meta")
    return model.eval(), complaints(info)


def complaints(info: Mapping[str, Any]) -> frozenset[str]:
    """Return what loading complained of, a line for each tensor."""
    return frozenset(f"{kind}: {name}" for kind, found in info.items() for name in map(str, found))


def _load(
    source: ModelSource, auto_class: str | None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    check_manifest(source.directory)
    refuse_pruned_parts(source.config)
    given: dict[str, Any] = {}
    if pruned_heads(source.config):
        source = modernised(source, auto_class)
        given["config"] = source.config
    kind = model_class(source, auto_class)
    _refuse_larger_than_weights(source, kind)
    # What wasn't saved is drawn at random, before it is refused or, where nothing reads it, left: the caller's state stays.
    # Of a model that we pruned, transformers says that its layers differ: that is known.
    known = (
        quiet() if "sites" in (getattr(source.config, "headprune", None) or {}) else nullcontext()
    )
    with torch.random.fork_rng(devices=[]), known:
        torch.manual_seed(0)
        try:
            model, info = kind.from_pretrained(
                source.directory,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
                **given,
            )
        except Exception as error:  # a config sends transformers, and what it imports, anywhere
            raise _unloadable(error, source) from error
    # A pooler is read by heads that have one; of the model alone, we read what comes before it.
    unread = "pooler" if model.base_model is model else None
    missing = [name for name in sorted(info["missing_keys"]) if not (unread and unread in name)]
    if missing:
        raise ModelError(
            f"the weights have no {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + f", which a {kind.__name__} needs",
            where=str(source.directory),
            hint="choose the --task that the model was trained for",
        )
    return model, info


def _refuse_larger_than_weights(source: ModelSource, kind: Any) -> None:
    """Refuse a config that describes a model far larger than its weights: loading would first take the memory for all of it.

    Raises:
        ModelError: It does, or no model can be built from it.
    """
    if getattr(source.config, "quantization_config", None) is not None:
        return  # packed: several numbers in one
    empty = build_empty(source, kind)
    described = count_parameters(empty)
    files = map(read_header, source.weight_files)
    stored = sum(prod(tensor.shape) for header in files for tensor in header.tensors)
    if described > 2 * stored + _SLACK:
        raise ModelError(
            f"the config describes a model of {described:,} numbers, and the weights hold {stored:,}",
            where=str(source.directory),
            hint="check that config.json and the weights belong together",
        )
    tables = sum(buffer.nbytes for buffer in empty.buffers())
    if tables > 16 * stored + _MOST_BYTES_OF_TABLES:
        raise ModelError(
            f"the config describes tables of {tables / 1e9:,.1f} GB beside weights of {stored:,} numbers",
            where=str(source.directory / "config.json"),
            hint="check its number of positions",
        )


def build_empty(source: ModelSource, kind: Any) -> PreTrainedModel:
    """Build the model of a config on the meta device, in the dtype the config names; no weights are read.

    Raises:
        ModelError: No model can be built from the config.
    """
    config = copy.deepcopy(source.config)
    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = kind._from_config(config, dtype=config.dtype or torch.float32)
    except Exception as error:
        if differs_by_layer(source.config):
            raise ModelError(
                f"a {kind.__name__} has layers that are alike, and the config wants them to differ (per_layer_config)",
                where=str(source.directory / "config.json"),
                hint="take the class that such a config is for, or another model",
            ) from error
        raise ModelError(
            f"no {kind.__name__} can be built from the config: {first_line(error)}",
            where=str(source.directory / "config.json"),
            hint="repair config.json",
        ) from error
    model.eval()
    return model


def _unloadable(error: Exception, source: ModelSource) -> HeadpruneError:
    where = str(source.directory)
    if is_out_of_memory(error):
        return MemoryLimitError(
            f"memory ran out while the model was loaded: {first_line(error)}",
            where=where,
            hint="use --dtype bfloat16, --device cpu, or --device spread: over all GPUs",
        )
    hint = "check that config.json and the weights belong together"
    if isinstance(error, ImportError):
        hint = "install what it names, or take a copy of the model that doesn't need it"
    return ModelError(f"the model can't be loaded: {first_line(error)}", where=where, hint=hint)


def modernised(source: ModelSource, auto_class: str | None) -> ModelSource:
    """Return the source with a config that loads, should transformers v4 have pruned the model."""
    if not pruned_heads(source.config):
        return source
    config = converted_config(source.config, model_class(source, auto_class))
    return replace(source, config=config)


def model_class(source: ModelSource, auto_class: str | None) -> Any:
    """Return the class that loads a model: transformers' own, or the one that cuts it to its pruned sizes first."""
    config = source.config
    stock: Any
    if auto_class is None and config.architectures:
        stock = getattr(transformers, config.architectures[0].removeprefix("HeadPruned"), None)
    else:
        stock = auto_classes(type(config)).get(auto_class or "AutoModel")
    if stock is None:
        raise ModelError(
            f"a {config.model_type} model can't be loaded as {auto_class or config.architectures}",
            where=str(source.directory),
            hint="choose the --task that the model was trained for",
        )
    if "sites" not in (getattr(config, "headprune", None) or {}):
        return stock
    if config.headprune.get("format") != 1:
        raise CheckpointError(
            f"the model was saved by a newer headprune (format {config.headprune.get('format')})",
            where=str(source.directory / "config.json"),
            hint="pip install --upgrade headprune",
        )
    made = getattr(modeling_headprune, f"HeadPruned{stock.__name__}")
    named = [name for name, kind in auto_classes(type(config)).items() if kind is stock]
    if named:
        # As transformers does: the model's own save_pretrained then writes the file that its config names.
        made.register_for_auto_class(named[0])
    return made
