"""Which ``AutoModel...`` of transformers knows a config or a model class."""

from functools import cache

import transformers
from transformers import PreTrainedConfig, PreTrainedModel


def auto_classes(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Return every ``AutoModel...`` that knows a config class, with the model class it picks."""
    found: dict[str, type[PreTrainedModel]] = {}
    for name in _auto_names():
        mapping = getattr(getattr(transformers, name), "_model_mapping", None)
        if mapping is None or config_class not in mapping:
            continue
        made = mapping[config_class]
        found[name] = made[0] if isinstance(made, (tuple, list)) else made
    return found


def auto_class_of(kind: type[PreTrainedModel]) -> str:
    """Return the ``AutoModel...`` that picks a model class, or the class's own name."""
    assert kind.config_class is not None
    names = [name for name, made in auto_classes(kind.config_class).items() if made is kind]
    # Several may: AutoModelForCausalLM is what a user knows, not AutoModelWithLMHead.
    plain = [name for name in names if "For" in name or name == "AutoModel"]
    return min(plain or names or [kind.__name__], key=len)


@cache
def _auto_names() -> tuple[str, ...]:
    """Return the names of all ``AutoModel...``; listing transformers takes half a second."""
    return tuple(name for name in dir(transformers) if name.startswith("AutoModel"))
