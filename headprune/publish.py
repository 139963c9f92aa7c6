"""A model in memory becomes a directory that is proven to load: what ``hp.save`` and ``convert`` end in."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import quiet, stock_class
from headprune.anatomy.inputs import example_inputs
from headprune.batch import forward, main_output
from headprune.models.classes import auto_class_of, auto_classes
from headprune.models.load import complaints
from headprune.models.manifest import output_directory, refuse_source, write_manifest
from headprune.models.own_save import own_save
from headprune.models.save import MAX_SHARD_SIZE, LoadMethod, write_model
from headprune.models.side_files import root_of
from headprune.models.tokenizer import home_of
from headprune.placement import count_parameters, input_device
from headprune.verify import (
    Proof,
    loads_afresh,
    parameters_add_up,
    reload_is_identical,
    require,
)


def publish(
    model: PreTrainedModel,
    directory: Path,
    *,
    anatomy: Anatomy,
    tokenizer: Any = None,
    source: Path | None = None,
    overwrite: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> tuple[LoadMethod, tuple[Proof, ...]]:
    """Save a model atomically, load it again in a fresh process, and seal it with a manifest of hashes.

    Args:
        model: The model, pruned or not.
        directory: Where to; must not exist or be empty unless ``overwrite``.
        anatomy: The model's anatomy as it is now.
        tokenizer: The tokenizer; None stands for the source's own.
        source: The directory of the model that it was made from.
        overwrite: Replace what is there.
        max_shard_size: Weights larger than this are split over several files.

    Returns:
        How it loads, and what was proven.

    Raises:
        CheckpointError: The directory isn't empty, is that of the source, or a write failed; nothing is left half-written.
        ProofError: What was saved isn't the model; nothing was saved.
    """
    if source is not None:
        refuse_source(directory, source)
    with output_directory(directory, overwrite=overwrite) as staging:
        route = write_model(
            model,
            staging,
            anatomy=anatomy,
            tokenizer=tokenizer,
            source=source,
            max_shard_size=max_shard_size,
        )
        proofs = _proofs(model, staging, route=route, tokenizer=tokenizer)
        require(proofs)
        write_manifest(staging)
    return route, proofs


def source_of(model: PreTrainedModel) -> Path | None:
    """Return the directory that a model was loaded from, before it was pruned, if it is there."""
    saving = own_save(model)
    name = model.config.name_or_path or (saving.source if saving else "")
    home = home_of(name)
    return home and root_of(home)


def _proofs(
    model: PreTrainedModel, directory: Path, *, route: LoadMethod, tokenizer: Any
) -> tuple[Proof, ...]:
    count = count_parameters(model)
    sums = parameters_add_up(before=count, removed=0, directory=directory, model=model)
    kind = stock_class(model)
    auto_class = auto_class_of(kind)
    if route == "remote-code" and kind.config_class and not auto_classes(kind.config_class):
        return (sums,)  # headprune.load alone knows such a class
    known = _absent(model)
    with _evaluating(model):
        inputs = _steady_inputs(model)
        if inputs is not None:
            same = reload_is_identical(
                model,
                directory,
                inputs=inputs,
                auto_class=auto_class,
                route=route,
                tokenizer=tokenizer,
                known=known,
            )
            return (same, sums)
    loads = loads_afresh(
        directory, auto_class=auto_class, route=route, known=known, tokenizer=tokenizer
    )
    return (loads, sums)


def _absent(model: PreTrainedModel) -> frozenset[str]:
    """Return what every load complains of, as the model in memory hasn't it either: the pooler of an encoder without one."""
    try:
        with quiet(), torch.device("meta"):
            whole = stock_class(model)(copy.deepcopy(model.config))
    except (ValueError, TypeError, RuntimeError, AttributeError):  # none can be built that way
        return frozenset()
    names = whole.state_dict().keys() - model.state_dict().keys()
    return complaints({"missing_keys": names})


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, in every module; as they were afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _steady_inputs(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return inputs on which a model says the same twice, and must anew; None where there are none.

    In half precision kernels needn't round alike, and tables that were cast in memory are computed anew by a load.
    """
    if model.dtype != torch.float32 or model.config.dtype not in (torch.float32, "float32", None):
        return None
    device = input_device(model)
    with quiet():
        examples = example_inputs(model)
    inputs = {name: value for name, value in examples.items() if isinstance(value, Tensor)}
    if device.type == "meta":
        return None
    moved = {name: value.to(device) for name, value in inputs.items()}
    try:
        with torch.no_grad(), quiet():
            outputs = [main_output(forward(model, moved)), model(**moved)[0]]
    except Exception:  # noqa: BLE001 - models raise whatever they like at inputs that aren't theirs
        return None
    same = all(isinstance(output, Tensor) for output in outputs) and torch.equal(*outputs)
    return inputs if same else None
