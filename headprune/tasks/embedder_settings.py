"""What sentence-transformers notes beside a model about texts: prompts, lengths, lower case. What isn't known is refused."""

from pathlib import Path
from typing import Any

from headprune.errors import ModelError
from headprune.tasks.embedding import TOKENS
from headprune.untrusted.documents import read_json

_MODEL_SETTINGS = "config_sentence_transformers.json"
_KIND = "SentenceTransformer"
_AGAIN = "fetch the model again, or save it again with sentence-transformers"
# The last six are names of old versions.
_SETTINGS = (
    "sentence_bert_config.json",
    *(
        f"sentence_{name}_config.json"
        for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
_EXPECTED = {"transformer_task": "feature-extraction", "module_output_name": TOKENS}
# Options that change nothing that is computed here; of the others none may be set. Each has an old name and a new one.
_OF_MODEL = (
    *("trust_remote_code", "attn_implementation", "use_safetensors", "low_cpu_mem_usage"),
    *("add_pooling_layer", "device_map"),
)
_OPTIONS = {
    **dict.fromkeys(("model_args", "model_kwargs"), _OF_MODEL),
    **dict.fromkeys(("tokenizer_args", "processor_kwargs"), ("trust_remote_code", "use_fast")),
    **dict.fromkeys(("config_args", "config_kwargs"), ("trust_remote_code", "use_cache")),
}
# More tokens than any text has.
_NO_LIMIT = 1_000_000
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


def embeds_sentences(directory: Path) -> bool:
    """Whether a directory is one of sentence-transformers whose model embeds: rerankers and sparse encoders are others."""
    if not (directory / "modules.json").is_file():
        return False
    path = directory / _MODEL_SETTINGS
    settings = read_json(path, error=ModelError, hint=_AGAIN) if path.is_file() else {}
    return bool(settings.get("model_type", _KIND) == _KIND)


def transformer_settings(folder: Path) -> dict[str, Any]:
    """Return what ``sentence_bert_config.json`` says, or an old version's file.

    Raises:
        ModelError: It asks for something that would make other embeddings.
    """
    path = next((folder / name for name in _SETTINGS if (folder / name).is_file()), None)
    if path is None:
        return {}
    settings = read_json(path, error=ModelError, hint=_AGAIN)
    for name, value in _EXPECTED.items():
        if settings.get(name, value) != value:
            raise _unsupported(f"{name} {settings[name]!r}", path)
    modalities = settings.get("modality_config", {"text": _TEXT})
    if not isinstance(modalities, dict) or modalities.get("text") != _TEXT:
        raise _unsupported("a modality_config whose texts aren't read by forward", path)
    if "message" in modalities:
        raise _unsupported("a modality_config that makes chat messages of texts", path)
    for key, known in _OPTIONS.items():
        options = settings.get(key) or {}
        unknown = sorted(set(options) - set(known)) if isinstance(options, dict) else [options]
        if unknown:
            raise _unsupported(f"{key} with {unknown[0]}", path)
    for key in ("processing_kwargs", "tokenizer_name_or_path"):
        if settings.get(key):
            raise _unsupported(key, path)
    return settings


def model_settings(directory: Path) -> dict[str, Any]:
    """Return what ``config_sentence_transformers.json`` says.

    Raises:
        ModelError: The model is none that embeds sentences, or a value is of the wrong type.
    """
    path = directory / _MODEL_SETTINGS
    if not path.is_file():
        return {}
    settings = read_json(path, error=ModelError, hint=_AGAIN)
    kind = settings.get("model_type", _KIND)
    if kind != _KIND:
        raise _unsupported(f"model_type {kind!r}, which makes no embedding of a sentence", path)
    if not isinstance(settings.get("prompts") or {}, dict):
        raise _unsupported(f"prompts {settings['prompts']!r}", path)
    dimensions = settings.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise _unsupported(f"truncate_dim {dimensions!r}", path)
    return settings


def default_prompt(model: dict[str, Any], *, where: Path) -> str:
    """Return what ``encode`` puts before every text."""
    name, prompts = model.get("default_prompt_name"), model.get("prompts") or {}
    if name is None:
        return ""
    # There always are these two, empty where nothing is said.
    known = {"query": "", "document": "", **prompts}
    if not isinstance(name, str) or name not in known:
        raise ModelError(
            f"default_prompt_name is {name!r}, and there is no such prompt",
            where=str(where / _MODEL_SETTINGS),
            hint=_AGAIN,
        )
    return str(known[name] or "")


def longest_input(settings: dict[str, Any], config: Any, tokenizer: Any) -> int:
    """Return the longest input, as sentence-transformers settles it.

    Raises:
        ModelError: It is no number of tokens.
    """
    given = settings.get("max_seq_length")
    if given is None:
        positions = getattr(config, "max_position_embeddings", None)
        limits = [getattr(tokenizer, "model_max_length", None), positions]
        known = [size for size in limits if type(size) is int and size > 0]
        return min([_NO_LIMIT, *known])
    if type(given) is not int or given < 2:
        raise ModelError(
            f"max_seq_length is {given!r}, not a number of tokens",
            where=_SETTINGS[0],
            hint=_AGAIN,
        )
    return given


def _unsupported(what: str, path: Path) -> ModelError:
    return ModelError(
        f"the model asks for {what}: headprune can't compute the same embeddings",
        where=str(path),
        hint="take it out and save the model again, if embeddings without it are meant",
    )
