"""Objects in memory that aren't a model of transformers but hold one, or part of one: what is inside is used, or named."""

from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import is_own_code
from headprune.errors import ModelError

Use = Literal["inspect", "score", "mask", "prune", "save"]

# By the class that stands around a model: what put it there, the attribute that holds the model, and what may be done to the
# model inside as if the wrapper weren't there. Compiled code doesn't look for new hooks, which masks and some cuts are; replicas
# don't share a mask; DistributedDataParallel holds on to the parameters that it was built with.
_AROUND_MODELS: dict[str, tuple[str, str, frozenset[Use]]] = {
    "OptimizedModule": ("torch.compile", "_orig_mod", frozenset({"inspect", "score", "save"})),
    "DataParallel": ("DataParallel", "module", frozenset({"inspect", "score", "prune", "save"})),
    "DistributedDataParallel": (
        "DistributedDataParallel",
        "module",
        frozenset({"inspect", "score", "mask", "save"}),
    ),
    "FullyShardedDataParallel": ("FSDP", "module", frozenset()),
    "CheckpointWrapper": ("activation checkpointing", "module", frozenset()),
}
# A pipeline and a model of sentence-transformers run the model inside, and put out something else than it.
_USES_IN_PROGRAMS = frozenset[Use]({"inspect", "mask", "prune"})


def unwrapped(given: Any, *, use: Use) -> PreTrainedModel:
    """Return the model of transformers that was given, or the one inside what was given where using that is exact.

    Raises:
        ModelError: It isn't one, and using the model inside would not be the same; the error names that model.
    """
    model = given
    while type(model).__name__ in _AROUND_MODELS and isinstance(model, nn.Module):
        _, attribute, uses = _AROUND_MODELS[type(model).__name__]
        if use not in uses:
            raise _no_model(given)
        model = getattr(model, attribute)
    if not isinstance(model, PreTrainedModel) and use in _USES_IN_PROGRAMS and _is_program(model):
        inside = [m for m in _modules(model) if isinstance(m, PreTrainedModel)]
        model = inside[0] if inside else model
    if not isinstance(model, PreTrainedModel):
        raise _no_model(given)
    _refuse_wrapped_parts(model)
    return model


def _is_program(given: Any) -> bool:
    """Whether it is a pipeline of transformers, or a model of sentence-transformers."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(given).__mro__}
    return bool(kinds & {"transformers.Pipeline", "sentence_transformers.SentenceTransformer"})


def _modules(given: Any) -> list[nn.Module]:
    inner = given if isinstance(given, nn.Module) else getattr(given, "model", None)
    return list(inner.modules()) if isinstance(inner, nn.Module) else []


def _refuse_wrapped_parts(model: PreTrainedModel) -> None:
    """Refuse a model that has something around its layers."""
    for name, module in model.named_modules():
        if type(module).__name__ in _AROUND_MODELS:
            by, attribute, _ = _AROUND_MODELS[type(module).__name__]
            raise ModelError(
                f"{by} is around {name or 'the model'}, a part of the model",
                where=type(model).__name__,
                hint=f"prune the plain model, and wrap its parts afterwards; the model inside is model.{name}.{attribute}",
            )
        if type(module).__module__.startswith("peft.tuners."):
            raise ModelError(
                f"adapters are in the model (at {name})",
                where=type(model).__name__,
                hint="merge them first, with peft_model.merge_and_unload(); or take them out: "
                "peft_model.unload(), model.delete_adapter(...)",
            )


def refuse_own_code(model: PreTrainedModel) -> None:
    """Refuse to save a model of a class that came from a model's own directory: its code doesn't come along.

    Raises:
        ModelError: It is of such a class.
    """
    kind = type(model)
    if is_own_code(kind):
        raise ModelError(
            f"{kind.__name__} is code of the model's own directory, which isn't saved: nothing would load what is written",
            where=f"{kind.__module__}",
            hint="prune a model of a class that transformers has itself: headprune.load(directory, stock_class=True)",
        )


def _no_model(given: Any) -> ModelError:
    name = type(given).__name__
    path = _inside(given)
    if path is None:
        what = "tensors" if isinstance(given, dict) else f"a {name}"
        return ModelError(
            f"{what} can't be pruned: a model of transformers is expected",
            where="model",
            hint="load the tensors into a model first, and give that: the model inside is needed"
            if isinstance(given, dict)
            else "give a PreTrainedModel, such as AutoModel.from_pretrained(...) or headprune.load(...)",
        )
    hint = f"give the model inside: {path}"
    if type(given).__module__.startswith("peft."):
        hint = (
            f"merge the adapters first: model.merge_and_unload() (the base model alone is {path})"
        )
    return ModelError(f"{name} is around the model", where="model", hint=hint)


def _inside(given: Any) -> str | None:
    """Return how the model inside is reached, as Python has it."""
    if not isinstance(given, nn.Module):
        inner = getattr(given, "model", None)
        if isinstance(inner, PreTrainedModel):
            return "model.model"
        deeper = _inside(inner) if isinstance(inner, nn.Module) else None
        return deeper and f"model.{deeper}"
    for name, module in given.named_modules():
        if name and isinstance(module, PreTrainedModel):
            parts = [f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split(".")]
            return "model" + "".join(parts)
    return None
