"""``config.json`` of a model: checked, read, and told whether the class that it was saved as is one of transformers."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from headprune.errors import ModelError, did_you_mean, first_line, package_error
from headprune.untrusted import (
    check_settings,
    class_names,
    code_of_its_own,
    read_json,
    refuse_quantised_config,
)

_MOST_BYTES = 20_000_000
_SAVED_AS = "architectures: "


def read_config(name: str, directory: Path) -> tuple[PreTrainedConfig, str | None]:
    """Return the config of a model, and the code of its own that it names.

    Raises:
        ModelError: It is damaged, says what no model is, or is of a type that transformers doesn't have.
        UnsupportedError: It is of packed weights.
    """
    path = directory / "config.json"
    settings = read_json(
        path, error=ModelError, hint="fetch the model again", most_bytes=_MOST_BYTES
    )
    check_settings(settings, where=str(path))
    refuse_quantised_config(settings, name=name, where=str(path))
    code = code_of_its_own(settings)
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if code is not None:
            raise own_code_error(name, code, directory, None)
        raise ModelError(
            f"unknown model type {model_type!r}",
            where=f"{path} (model_type)",
            hint="pip install --upgrade transformers, or "
            + did_you_mean(str(model_type), _closest(str(model_type), CONFIG_MAPPING)),
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        _drop_code_of_parts(config)
        if (names := class_names(settings)) is not None:
            config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        if code is None and config.architectures and stock_architecture(config) is None:
            code = f"{_SAVED_AS}{config.architectures[0]}"[:200]
    except Exception as error:  # config classes validate with exceptions of many kinds
        raise package_error(error, what=f"the config of {name}", where=str(path)) or ModelError(
            f"the config of {name} is not valid: {_last_line(error)}",
            where=str(path),
            hint="repair config.json",
        ) from error
    return config, code


def _drop_code_of_parts(config: PreTrainedConfig) -> None:
    """Let no part of a model name code: transformers asks on the terminal whether to run it, and takes a "y" from anywhere."""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            if getattr(part, "auto_map", None) is not None:
                del part.auto_map
            _drop_code_of_parts(part)


def own_code_error(name: str, code: str, directory: Path, model_type: str | None) -> ModelError:
    """Return what to raise for a model that runs code of its own; without a type of transformers there is no other class."""
    hint = (
        "--stock-class (in Python stock_class=True) takes transformers' own "
        f"{model_type} model in its place, as from_pretrained without trust_remote_code does; it may compute something else"
        if model_type
        else "transformers has no class of its own for this model; docs/support.md lists the types that can be pruned"
    )
    saved_as = code.removeprefix(_SAVED_AS)
    return ModelError(
        f"{name} was saved as a {saved_as}, and transformers has no {model_type} model of that name"
        if saved_as != code
        else f"{name} runs code of its own ({code}), and code of a model's directory isn't run here",
        where=f"{directory / 'config.json'} (auto_map, architectures)",
        hint=hint,
    )


def stock_architecture(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return transformers' class of the name and type that a config gives; None where there is none, or none is given."""
    names = config.architectures or [""]
    found = getattr(transformers, names[0].removeprefix("HeadPruned"), None)
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        return None
    own: Any = found.config_class
    kinds = (type(config), *getattr(config, "sub_configs", {}).values())
    fits = any(own is None or issubclass(kind, own) or issubclass(own, kind) for kind in kinds)
    return found if fits else None


def _last_line(error: BaseException) -> str:
    return (
        first_line(ValueError(str(error).strip().splitlines()[-1]))
        if str(error).strip()
        else type(error).__name__
    )


def _closest(word: str, known: Any) -> list[str]:
    return get_close_matches(word, list(known), n=3, cutoff=0.4) or ["bert", "gpt2", "llama"]
