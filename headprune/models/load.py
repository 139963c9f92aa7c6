"""Load a model, pruned or not, without running any file of its directory."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.errors import ModelError, is_out_of_memory, package_error, what_it_says
from headprune.models.classes import model_class
from headprune.models.find import ModelSource, find
from headprune.models.legacy import converted_config, pruned_heads, refuse_pruned_parts
from headprune.models.load_errors import incomplete, random_pooler, unloadable, unread
from headprune.models.manifest import check_manifest
from headprune.models.stream import count_stored
from headprune.placement import choose_device, choose_dtype, count_parameters

# Heads and poolers that a task adds, and tables that are computed.
_SLACK = 10_000_000
_MOST_BYTES_OF_TABLES = 4_000_000_000
# Attention that torch itself has; what else a config names is a package, or code from the hub.
_OWN_KERNELS = ("eager", "sdpa", "flex_attention")

Notify = Callable[[str], None]


def _warn(text: str) -> None:
    """Warn a user of the Python functions."""
    warnings.warn(text, stacklevel=2)


def load(
    directory: str | Path,
    *,
    auto_class: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    stock_class: bool = False,
) -> PreTrainedModel:
    """Load a model that headprune (or transformers) saved; no ``trust_remote_code`` is needed.

    Args:
        directory: Where it lies.
        auto_class: Which ``AutoModel...`` to load it as; by default the class it was saved as.
        device: ``auto``, ``cpu``, ``cuda``, ..., or ``spread``: over all GPUs, and the CPU where they are too small.
        dtype: ``auto`` is the dtype it was saved in.
        attn_implementation: ``eager``, ``sdpa``, ...; by default what transformers chooses.
        stock_class: Take transformers' own class for a model that names code of its own, which is never run.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: It can't be loaded as what was asked for, names code of its own, or is adapters.
        UnsupportedError: It is quantised.
    """
    source = find(str(directory), stock_class=stock_class)
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
    notify: Notify = _warn,
) -> PreTrainedModel:
    """Load a model in eval mode; every weight that it needs must be there.

    Args:
        source: The model.
        auto_class: Which ``AutoModel...`` to load it as; None is the class it was saved as.
        device: As :func:`load` takes it.
        dtype: As :func:`load` takes it.
        attn_implementation: As :func:`load` takes it.
        notify: Is told what of the files isn't used, or is used otherwise than they say.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: It can't be loaded as ``auto_class``.
    """
    options: dict[str, Any] = {}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if device == "spread":
        options["device_map"] = "auto"
    model, _info = _load(source, auto_class, notify=notify, dtype=choose_dtype(dtype), **options)
    for name in ("id2label", "label2id"):  # transformers drops some, and derives none
        if getattr(source.config, name, None):
            setattr(model.config, name, dict(getattr(source.config, name)))
    if device == "spread":
        spread: PreTrainedModel = model.eval()
        return spread
    chosen = choose_device(device)
    try:
        loaded: PreTrainedModel = model.to(chosen).eval()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise unloadable(error, source) from error
    return loaded


def load_shapes(
    source: ModelSource, *, notify: Notify = _warn
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load names, shapes and dtypes of a model on the meta device, as the class it was saved as; no number is read.

    Returns:
        The model, and what loading complained of.

    Raises:
        CheckpointError: A file is missing or damaged.
        ModelError: The weights aren't those of the config.
    """
    model, info = _load(source, None, notify=notify, dtype="auto", device_map="meta")
    return model.eval(), complaints(info)


def complaints(info: Mapping[str, Any]) -> frozenset[str]:
    """Return what loading complained of, a line for each tensor."""
    return frozenset(f"{kind}: {name}" for kind, found in info.items() for name in map(str, found))


def _load(
    source: ModelSource, auto_class: str | None, *, notify: Notify, **options: Any
) -> tuple[Any, dict[str, Any]]:
    check_manifest(source.directory)
    for note in source.notes:
        notify(note)
    refuse_pruned_parts(source.config)
    changed: dict[str, Any] = {}
    if pruned_heads(source.config):
        source = _modernised(source, auto_class)
        changed["config"] = source.config
    if foreign := sorted(set(_foreign_kernels(source.config))):
        source = replace(source, config=_without_kernels(source.config))
        changed["config"] = source.config
        if "attn_implementation" not in options:
            notify(
                f"careful: config.json asks for the attention {', '.join(foreign)}; "
                "what torch itself has is used instead, as results are proven with it"
            )
    kind = model_class(source, auto_class)
    empty = _refuse_larger_than_weights(source, kind)
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
                **changed,
            )
        except Exception as error:  # a config sends transformers, and what it imports, anywhere
            raise unloadable(error, source, empty=empty) from error
    # A pooler is read by heads that have one; of the model alone, we read what comes before it.
    poolers = [name for name in sorted(info["missing_keys"]) if "pooler" in name]
    missing = sorted(info["missing_keys"])
    if model.base_model is model:
        missing = [name for name in missing if name not in poolers]
    if missing:
        raise incomplete(missing, model, source, kind=kind.__name__)
    for text in (unread(info["unexpected_keys"], model), random_pooler(poolers)):
        if text:
            notify(text)
    return model, info


def _foreign_kernels(config: PreTrainedConfig) -> Iterator[str]:
    """Yield the attention implementations that a config, or one inside it, asks for and that torch itself doesn't have."""
    asked = config._attn_implementation
    if isinstance(asked, str) and asked not in _OWN_KERNELS:
        yield asked
    for name in config.sub_configs:
        if isinstance(inside := getattr(config, name, None), PreTrainedConfig):
            yield from _foreign_kernels(inside)


def _without_kernels(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a config that leaves the attention's implementation to transformers."""
    plain = copy.deepcopy(config)
    plain._attn_implementation = None
    return plain


def _refuse_larger_than_weights(source: ModelSource, kind: Any) -> PreTrainedModel:
    """Return the model that a config describes, without memory; refused where it is far larger than the weights."""
    empty = _build_empty(source, kind)
    described = count_parameters(empty)
    stored = count_stored(source.directory)
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
    return empty


def _build_empty(source: ModelSource, kind: Any) -> PreTrainedModel:
    """Build the model of a config on the meta device, in the dtype the config names; no weights are read."""
    config = _without_kernels(source.config)
    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = kind._from_config(config, dtype=config.dtype or torch.float32)
    except Exception as error:
        if getattr(config, "is_heterogeneous", False):
            raise ModelError(
                f"the config gives layers settings of their own, and {kind.__name__} builds all its layers alike",
                where=f"{source.directory / 'config.json'} (per_layer_config)",
                hint="give all layers the same settings, or install a transformers that builds such a model",
            ) from error
        what, where = f"the model {source.name}", str(source.directory / "config.json")
        raise package_error(error, what=what, where=where) or ModelError(
            f"no {kind.__name__} can be built from the config: {what_it_says(error)}",
            where=where,
            hint="repair config.json",
        ) from error
    model.eval()
    return model


def _modernised(source: ModelSource, auto_class: str | None) -> ModelSource:
    """Return the source; with a config that loads, where transformers v4 pruned the model."""
    if not pruned_heads(source.config):
        return source
    config = converted_config(source.config, model_class(source, auto_class))
    return replace(source, config=config)


def empty_model(source: ModelSource) -> PreTrainedModel:
    """Build the model of a config on the meta device, in the dtype the config names; no weights are read.

    Raises:
        ModelError: No model can be built from the config.
    """
    source = _modernised(source, None)
    return _build_empty(source, model_class(source, None))
