"""Find and load models and tokenizers: hub ids, directories, demo models; device, dtype, revision. Never a pickle."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from headprune import demo
from headprune.errors import ModelError, did_you_mean, first_line, package_error
from headprune.untrusted.directories import (
    module_entries,
    refuse_damaged_settings,
    refuse_foreign_files,
    transformer_folder,
)
from headprune.untrusted.documents import read_json
from headprune.untrusted.recognise import (
    code_of_its_own,
    code_of_the_tokenizer,
    refuse_adapters,
    refuse_quantised_config,
    refuse_wrapped_names,
)
from headprune.untrusted.settings import check_settings, class_names
from headprune.untrusted.weights import WHOLE, read_header, weight_files, weight_names


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, not loaded yet.

    Args:
        name: As the user wrote it.
        directory: Where its files lie.
        revision: The commit of a hub model; None for a directory.
        config: Its config.
        folder: Its folder's name, where old sentence-transformers keep it in one (``0_Transformer``) of the directory named.
        own_code: The code of its own that the model names and that isn't run, where the stock class was asked for instead.
        notes: What is to be said to the user before the model is used.
    """

    name: str
    directory: Path
    revision: str | None
    config: PreTrainedConfig
    folder: str = ""
    own_code: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The directory that was named."""
        return self.directory.parent if self.folder else self.directory

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Its safetensors files: those that a load reads."""
        return weight_files(self.directory)


@contextmanager
def _reading_files() -> Iterator[None]:
    """Turn a failed read of a model's file into an error that names it."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"a file of the model can't be read: {error.strerror or error}",
            where=f"MODEL {error.filename or ''}".strip(),
            hint="check the path and its permissions",
        ) from error


@_reading_files()
def find(
    name: str, *, revision: str | None = None, weights: bool = True, stock_class: bool = False
) -> ModelSource:
    """Find a model by directory, ``demo:NAME`` or hub id, and check its files before anything is loaded.

    Args:
        name: As the user wrote it.
        revision: Of a hub model.
        weights: Whether they are needed; without, ``config.json`` is enough.
        stock_class: Take transformers' own class for a model that names code of its own, which is never run.

    Raises:
        ModelError: There is no such model, its config or weights are damaged or missing, its type isn't known, it names code of
            its own, or it isn't a model but adapters.
        UnsupportedError: It is quantised.
    """
    notes: tuple[str, ...] = ()
    if name.startswith(demo.PREFIX):
        directory, commit = demo.locate_model(name), None
    else:
        directory, commit = _directory_of(name, revision, weights=weights)
        refuse_foreign_files(directory)
        notes = refuse_adapters(directory, name=name)
    directory /= (folder := transformer_folder(directory))
    if not (directory / "config.json").is_file():
        kinds = ", ".join(entry.kind for entry in module_entries(directory) or ())
        raise ModelError(
            f"{name} is made of {kinds}: it has no transformer whose heads could be pruned"
            if kinds and "Transformer" not in kinds
            else f"{name} holds no model: config.json is missing",
            where=f"MODEL {name}",
            hint=NAME_IT,
        )
    config, code = _read_config(name, directory)
    if code is not None and not stock_class:
        raise _own_code_error(name, code, directory, config.model_type)
    if code is not None:
        notes += (
            f"careful: {name} names code of its own ({code}), which isn't run: this is transformers' own "
            f"{config.model_type} model, and what is saved of it names no code of anybody else",
        )
    if tokenizer := code_of_the_tokenizer(directory):
        notes += (
            f"careful: the tokenizer names code of its own ({tokenizer}), which isn't run: transformers' own is used",
        )
    source = ModelSource(name, directory, commit, config, folder, code, notes)
    if weights:
        for folder_with_settings in {source.root, directory}:
            refuse_damaged_settings(folder_with_settings)
        _check_weights(source)
    return source


def _check_weights(source: ModelSource) -> None:
    """Refuse missing, truncated and pickled weights."""
    if not source.weight_files:
        what = f"no weights ({WHOLE}, or several files and their index)"
        hint = f"name the directory that holds {WHOLE}"
        others = sorted(path for path in source.directory.glob("*.safetensors") if path.is_file())
        if others:
            hint = f"is {others[0].name} the whole model? then name it {WHOLE}"
        if pickled := sorted(source.directory.glob("*.bin")):
            what = f"only pickled weights ({pickled[0].name}), which can run code when loaded"
            hint = "rewrite them as safetensors: headprune convert DIR --out NEW --allow-pickle (which reads tensors alone)"
        raise ModelError(f"{source.name} has {what}", where=str(source.directory), hint=hint)
    names = [tensor.name for path in source.weight_files for tensor in read_header(path).tensors]
    refuse_wrapped_names(names, name=source.name, where=str(source.directory))


# What a load, a card and a manifest need beside the weights. Code is fetched, not run. Modules of an embedding model lie in
# folders that are numbered, with weights of their own.
_WANTED_FILES = [
    *("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.yaml", "README.md"),
    "[0-9]*_*/*.safetensors",
]
NAME_IT = "name the directory that holds config.json and model.safetensors"
"""A hint."""


def _directory_of(name: str, revision: str | None, *, weights: bool) -> tuple[Path, str | None]:
    """Return where a model's files lie, and the commit of a hub model."""
    try:
        is_here, is_directory = Path(name).exists(), Path(name).is_dir()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name[:100]!r} can't be looked for: {getattr(error, 'strerror', None) or error}",
            where="MODEL",
            hint="check the path and the permissions",
        ) from error
    if is_here and not is_directory:
        raise ModelError(
            f"{name} is a file, not the directory of a model",
            where=f"MODEL {name}",
            hint=NAME_IT,
        )
    if is_here:
        return Path(name), None
    directory = _download(name, revision, weights=weights)
    return directory, directory.name


def _download(name: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no directory {name}", where=f"MODEL {name}", hint="check the path"
        )
    try:
        patterns = _WANTED_FILES if weights else ["*.json"]
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if weights:  # once it is known which they are: others, in another format, lie beside many
            files = weight_names(directory, fetched=False) or (WHOLE,)
            snapshot_download(name, revision=directory.name, allow_patterns=list(files))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a directory nor a hub id",
            where=f"MODEL {name}",
            hint="check the name",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:  # hub and connection errors are OSErrors
        raise ModelError(
            f"the model {name} is not a directory here, and it could not be had from the hub",
            where=f"MODEL {name}" + (f" `revision={revision}`" if revision else ""),
            hint="check the name and the network; HF_HUB_OFFLINE=1 allows only what is in the cache",
        ) from error
    return directory


_MOST_BYTES = 20_000_000
_SAVED_AS = "architectures: "


def _read_config(name: str, directory: Path) -> tuple[PreTrainedConfig, str | None]:
    """Return the config of a model, and the code of its own that it names."""
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
            raise _own_code_error(name, code, directory, None)
        alike = get_close_matches(str(model_type), list(CONFIG_MAPPING), n=3, cutoff=0.4)
        known = alike or ["bert", "gpt2", "llama"]
        raise ModelError(
            f"unknown model type {model_type!r}",
            where=f"{path} (model_type)",
            hint=f"pip install --upgrade transformers, or {did_you_mean(str(model_type), known)}",
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
    """Remove ``auto_map`` from configs of a model's parts: transformers would ask on the terminal whether to run that code."""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            if getattr(part, "auto_map", None) is not None:
                del part.auto_map
            _drop_code_of_parts(part)


def _own_code_error(name: str, code: str, directory: Path, model_type: str | None) -> ModelError:
    """Return the error for a model that runs code of its own; ``model_type`` is None where transformers has no class for it."""
    hint = (
        "`stock_class=True` takes transformers' own "
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
    """Return transformers' class of the architecture and type that a config names; None where there is no such class."""
    names = config.architectures or [""]
    kind = getattr(transformers, names[0].removeprefix("HeadPruned"), None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        return None
    own: Any = kind.config_class
    configs = (type(config), *getattr(config, "sub_configs", {}).values())
    fits = any(own is None or issubclass(each, own) or issubclass(own, each) for each in configs)
    return kind if fits else None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return first_line(ValueError(lines[-1]))
