"""Which ``AutoModel...`` of transformers knows a config or a model class."""

from functools import cache
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.errors import CheckpointError, ModelError
from headprune.models.find import ModelSource, stock_architecture
from headprune.surgery import modeling_headprune


def auto_classes(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Return every ``AutoModel...`` that knows a config class, with the model class it picks."""
    classes: dict[str, type[PreTrainedModel]] = {}
    for name in _auto_names():
        mapping = getattr(transformers, name)._model_mapping
        if mapping is None or config_class not in mapping:
            continue
        picked = mapping[config_class]
        classes[name] = picked[0] if isinstance(picked, (tuple, list)) else picked
    return classes


def auto_class_of(kind: type[PreTrainedModel]) -> str:
    """Return the name of the ``AutoModel...`` that picks a model class, or the class's own name where none does."""
    assert kind.config_class is not None
    names = [name for name, picked in auto_classes(kind.config_class).items() if picked is kind]
    # Several may: AutoModelForCausalLM is what a user knows, not AutoModelWithLMHead.
    plain = [name for name in names if "For" in name or name == "AutoModel"]
    return min(plain or names or [kind.__name__], key=len)


@cache
def _auto_names() -> tuple[str, ...]:
    """Return the names of all ``AutoModel...``; listing transformers takes half a second."""
    return tuple(name for name in dir(transformers) if name.startswith("AutoModel"))


_HEADS = ("ForSequenceClassification", "ForCausalLM", "ForMaskedLM")


def model_class(source: ModelSource, auto_class: str | None) -> Any:
    """Return the class that loads a model: transformers' own, or the one that cuts it to its pruned sizes first.

    ``auto_class`` says which ``AutoModel...`` to load it as; None is the class it was saved as.
    """
    config = source.config
    saved_as = stock_architecture(config)
    known = auto_classes(type(config))
    stock: Any = saved_as
    if auto_class is not None or saved_as is None:
        stock = known.get(auto_class or _likely_auto_class(config))
    if stock is None:
        raise ModelError(
            f"transformers has no {auto_class or 'AutoModel'} of the type {config.model_type}",
            where=f"{source.directory / 'config.json'} (model_type)",
            hint=f"a {config.model_type} model can be loaded as {', '.join(known) or 'nothing'}",
        )
    _refuse_other_head(source, saved_as, stock)
    if "sites" not in (getattr(config, "headprune", None) or {}):
        return stock
    if config.headprune.get("format") != 1:
        raise CheckpointError(
            f"the model was saved by a newer headprune (format {config.headprune.get('format')})",
            where=str(source.directory / "config.json"),
            hint="pip install --upgrade headprune",
        )
    pruned_class = getattr(modeling_headprune, f"HeadPruned{stock.__name__}")
    named = [name for name, kind in auto_classes(type(config)).items() if kind is stock]
    if named:
        # As transformers does: the model's own save_pretrained then writes the file that its config names.
        pruned_class.register_for_auto_class(named[0])
    return pruned_class


def _likely_auto_class(config: PreTrainedConfig) -> str:
    """Guess the ``AutoModel...`` of a class that transformers doesn't have, by the end of its name."""
    name = (config.architectures or [""])[0]
    return next((f"AutoModel{end}" for end in _HEADS if name.endswith(end)), "AutoModel")


_CLASSIFIER = "ForSequenceClassification"


def _refuse_other_head(source: ModelSource, saved_as: Any, stock: Any) -> None:
    """Refuse a classifier whose head was trained for another task: its tensors may have the same names and sizes."""
    if saved_as is None or not stock.__name__.endswith(_CLASSIFIER):
        return
    head = saved_as.__name__.partition("For")[2]
    if head and head != stock.__name__.partition("For")[2]:
        raise ModelError(
            f"{source.name} was saved as {saved_as.__name__}: its head doesn't classify texts, as {stock.__name__} does",
            where=f"{source.directory / 'config.json'} (architectures)",
            hint="train it to classify first, or correct architectures; `task=similarity` needs no head",
        )
