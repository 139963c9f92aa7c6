"""Why a model can't be loaded, in words of ours: what is missing, what has another size, which package isn't there."""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, takewhile

from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.clone import config_value, pruning_record
from headprune.errors import (
    HeadpruneError,
    MemoryLimitError,
    ModelError,
    first_line,
    is_out_of_memory,
    package_error,
    what_it_says,
)
from headprune.models.find import ModelSource
from headprune.models.stream import names_in_memory, stored_tensors
from headprune.untrusted.recognise import unwrapping

_TOGETHER = "check that config.json and the weights belong together"


def unloadable(
    error: Exception, source: ModelSource, *, empty: PreTrainedModel | None = None
) -> HeadpruneError:
    """Return the error to raise where a library failed to load a model; ``empty`` is what its config describes."""
    where = str(source.directory)
    if is_out_of_memory(error):
        return MemoryLimitError(
            f"memory ran out while the model was loaded: {first_line(error)}",
            where=where,
            hint="use `dtype=bfloat16`, `device=cpu`, or `device=spread`: over all GPUs",
        )
    other_size = _other_size(source, empty) if empty is not None else None
    if other_size is not None:
        return ModelError(other_size, where=where, hint=_sizes_hint(source))
    return package_error(error, what=f"the model {source.name}", where=where) or ModelError(
        f"the model can't be loaded: {what_it_says(error)}", where=where, hint=_TOGETHER
    )


def _sizes_hint(source: ModelSource) -> str:
    if _is_pruned_within(source.config):
        return (
            "a part of it was pruned, and the model around that saved it: prune the whole model in the same way "
            "(its config lists the heads: headprune.removed), load these weights (load_state_dict), and hp.save it"
        )
    return f"{_TOGETHER}: sizes such as hidden_size, vocab_size, num_labels ({source.directory / 'config.json'})"


def _is_pruned_within(config: PreTrainedConfig) -> bool:
    """Whether heads were removed, and the program that saved the model didn't write its new sizes."""
    record = pruning_record(config)
    counts = record.get("original", {})
    if record.get("removed") and "sites" not in record:
        return all(config_value(config, name) == count for name, count in counts.items())
    inner = (getattr(config, name, None) for name in type(config).sub_configs)
    return any(isinstance(part, PreTrainedConfig) and _is_pruned_within(part) for part in inner)


def _other_size(source: ModelSource, empty: PreTrainedModel) -> str | None:
    """Return the first tensor that has another shape in the files than the config says."""
    stored = _stored_shapes(source)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    for name, inside in names_in_memory(empty, stored).items():
        if stored[name] != expected[inside]:
            in_files, in_config = (
                " x ".join(map(str, s)) for s in (stored[name], expected[inside])
            )
            return f"{name} is {in_files} in the weights, and config.json describes {in_config}"
    return None


def _stored_shapes(source: ModelSource) -> dict[str, tuple[int, ...]]:
    return {stored.name: stored.shape for stored in stored_tensors(source.directory)}


def incomplete(
    missing: Sequence[str], model: PreTrainedModel, source: ModelSource, *, kind: str
) -> ModelError:
    """Return the error to raise where the weights lack tensors that a model needs, which has random numbers in their places."""
    stored = _stored_shapes(source)
    prefix = _foreign_prefix(model, stored, missing)
    there = names_in_memory(model, stored).values()
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    what = f"the weights have no {missing[0]}{more}, which a {kind} reads"
    inner = f"{model.base_model_prefix}."
    untrained = [name for name in (*missing, *there) if not name.startswith(inner)]
    if prefix is not None:
        what = f"every name in the weights starts with {prefix!r}, which a {kind} doesn't have"
        hint = unwrapping(prefix)
    elif not there:
        some = ", ".join(sorted(stored)[:2])
        what = f"none of the weights' names are those of a {kind}: they are called {some}, ..."
        hint = "check model_type and architectures in config.json: the weights are another model's"
    elif "pooler" in missing[0]:
        what += ": without it the predictions would be random numbers"
        hint = "save the model again with all of its weights, as it was trained; `task=similarity` reads no pooler"
    elif model.base_model is not model and untrained == list(missing):
        saved = ", ".join(source.config.architectures or ()) or "a model without a head"
        what += f": its head was never trained (the model was saved as {saved})"
        hint = (
            "train the head first, or name the task that the model was trained for: "
            "`task=similarity` needs no head"
        )
    else:
        hint = f"{_TOGETHER}, and that every file of them is there"
    return ModelError(what, where=str(source.directory), hint=hint)


def _foreign_prefix(
    model: PreTrainedModel, stored: Collection[str], missing: Sequence[str]
) -> str | None:
    """Return the prefix that all names in the files have and the model's don't, if that is all that is wrong with them."""
    known = len(names_in_memory(model, stored))
    names = [name.split(".")[:-1] for name in stored]
    common = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    for prefix in accumulate(f"{parts[0]}." for parts in common):
        within = names_in_memory(model, [name.removeprefix(prefix) for name in stored])
        fits = set(missing) <= set(within.values()) or len(within) == len(stored)
        if fits and len(within) > known:
            return prefix
    return None


def unread(unexpected: Iterable[str], model: PreTrainedModel) -> str | None:
    """Return a warning about tensors that the model doesn't use, such as the head that a task drops; None without any."""
    prefix = f"{model.base_model_prefix}."
    tables = tuple(name.removeprefix(prefix) for name, _ in model.named_buffers())
    names = sorted(name for name in unexpected if not (tables and name.endswith(tables)))
    if not names:
        return None
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    held = f"{len(names)} tensors ({shown})" if len(names) > 1 else f"a tensor ({shown})"
    if all(name.startswith("lm_head.") for name in names):
        held = "the head of a language model"
    return (
        f"careful: the weights hold {held}; a {type(model).__name__} doesn't read that, and what is saved "
        "won't have it"
    )


def random_pooler(missing: Sequence[str]) -> str | None:
    """Return a warning about a pooler that isn't in the weights and that the task doesn't use; None without any."""
    return (
        f"careful: the weights have no {missing[0]}: the pooler's output would be random numbers (nothing here reads it)"
        if missing
        else None
    )
