"""Objects in memory that aren't a model of transformers but hold one, or part of one: what is inside is named."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import is_own_code
from headprune.errors import ModelError

# By the class that stands around a module, what put it there.
_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DataParallel": "DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FSDP",
    "CheckpointWrapper": "activation checkpointing",
}


def refuse_wrapped(model: Any) -> None:
    """Refuse what isn't a model of transformers, and a model that has something around its layers.

    Raises:
        ModelError: It is one; the error names the model inside.
    """
    if not isinstance(model, PreTrainedModel):
        raise _no_model(model)
    for name, module in model.named_modules():
        by = _WRAPPERS.get(type(module).__name__)
        if by is not None:
            raise ModelError(
                f"{by} is around {name or 'the model'}, a part of the model",
                where=type(model).__name__,
                hint=f"prune the plain model, and wrap its parts afterwards; the model inside is model.{name}"
                + {"torch.compile": "._orig_mod"}.get(by, ".module"),
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
