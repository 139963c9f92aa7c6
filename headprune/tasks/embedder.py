"""A directory of sentence-transformers, read: what its model does with a text, before and after the transformer."""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoModelForTextEncoding

from headprune.anatomy.exceptions import ENCODERS_WITHOUT_AUTO_MODEL, SENTENCE_ENCODERS
from headprune.errors import ModelError
from headprune.tasks.embedding import AGAIN, read_modules
from headprune.tasks.pooling import SIMILARITIES, TOKENS, Step, pooled
from headprune.untrusted.directories import ModuleEntry, module_entries, transformer_folder
from headprune.untrusted.documents import read_json

_ENCODER_ALONE = (
    "encoder alone (pruned, it loads by headprune.load, or by transformers with trust_remote_code=True; sentence-transformers "
    "builds encoders of this family whole)"
)
_MODEL_SETTINGS = "config_sentence_transformers.json"
_KIND = "SentenceTransformer"
_OLD_NAMES = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TRANSFORMER_SETTINGS = [f"sentence_{name}_config.json" for name in ("bert", *_OLD_NAMES)]
_EXPECTED = {"transformer_task": "feature-extraction", "module_output_name": TOKENS}
# Options that change nothing that is computed here; of the others none may be set. Each has an old name and a new one.
_MODEL_OPTIONS = (
    *("trust_remote_code", "attn_implementation", "use_safetensors", "low_cpu_mem_usage"),
    *("add_pooling_layer", "device_map"),
)
_OPTIONS = {
    **dict.fromkeys(("model_args", "model_kwargs"), _MODEL_OPTIONS),
    **dict.fromkeys(("tokenizer_args", "processor_kwargs"), ("trust_remote_code", "use_fast")),
    **dict.fromkeys(("config_args", "config_kwargs"), ("trust_remote_code", "use_cache")),
}
# More tokens than any text has.
_NO_LIMIT = 1_000_000
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True, eq=False)
class Embedder:
    """What a sentence-embedding model is, beside its transformer.

    Args:
        steps: From token states to the sentence's embedding, one function a module.
        described: The same in words.
        auto_class: The ``AutoModel...`` class that loads the transformer.
        prompt: What is put before every text.
        lower_case: Whether texts are lower-cased before they are tokenised.
        max_length: The longest input in tokens; None where nothing says.
        dimensions: How many numbers of the embedding count; None: all.
        similarity: How two embeddings are compared: ``cosine``, ``dot``, ``euclidean``, ``manhattan``.
    """

    steps: tuple[Step, ...]
    described: str
    auto_class: str = "AutoModel"
    prompt: str = ""
    lower_case: bool = False
    max_length: int | None = None
    dimensions: int | None = None
    similarity: str = "cosine"


def read_embedder(directory: Path | None, *, config: Any = None, tokenizer: Any = None) -> Embedder:
    """Read how a model embeds sentences.

    Args:
        directory: The directory that was named; None for a model in memory.
        config: The transformer's config.
        tokenizer: Its tokenizer, which counts a prompt's tokens where these don't count.

    Raises:
        ModelError: It embeds in a way that headprune can't compute exactly; the message names what.
    """
    auto_class = _auto_class(config)
    entries = None if directory is None else module_entries(directory)
    if directory is None or entries is None:
        return _assumed(directory, config, auto_class)
    settings = _transformer_settings(directory / transformer_folder(directory))
    model = _model_settings(directory)
    prompt = _default_prompt(model, directory)
    lower_case = bool(settings.get("do_lower_case", False))
    max_length = _longest_input(settings, config, tokenizer)
    steps, words = read_modules(
        _after_transformer(entries, directory),
        directory,
        token_width=getattr(config, "hidden_size", None),
        prompt_length=lambda: _prompt_length(prompt, tokenizer, lower_case, max_length),
    )
    similarity = model.get("similarity_fn_name")
    similarity = (
        similarity if isinstance(similarity, str) and similarity in SIMILARITIES else "cosine"
    )
    dimensions = model.get("truncate_dim")
    words += [_ENCODER_ALONE] * (auto_class != "AutoModel")
    words += [f"the first {dimensions} numbers"] * (dimensions is not None)
    words += [f"prompt {prompt!r}"] * bool(prompt) + ["lower-cased"] * lower_case
    named = sorted(name for name, text in (model.get("prompts") or {}).items() if text)
    words += [f"none of its prompts ({', '.join(named)})"] * bool(named and not prompt)
    words += [f"compared by {similarity} (a loss compares by cosine)"] * (similarity != "cosine")
    return Embedder(
        steps=steps,
        described=", ".join(words),
        auto_class=auto_class,
        prompt=prompt,
        lower_case=lower_case,
        max_length=max_length,
        dimensions=dimensions,
        similarity=similarity,
    )


def _auto_class(config: Any) -> str:
    model_type = getattr(config, "model_type", None)
    if model_type in ENCODERS_WITHOUT_AUTO_MODEL:
        raise ModelError(
            f"sentence-transformers embeds with the encoder of a {model_type} model alone, which isn't supported",
            where="config.json (model_type)",
            hint="take an embedding model of another family, or another `task`",
        )
    return AutoModelForTextEncoding.__name__ if model_type in SENTENCE_ENCODERS else "AutoModel"


def _assumed(directory: Path | None, config: Any, auto_class: str) -> Embedder:
    """Return what sentence-transformers does with a model that isn't one of its own."""
    loose = sorted(directory.glob("[0-9]*_*/config.json")) if directory is not None else []
    if loose:
        name = loose[0].parent.name
        raise ModelError(
            f"{name} lies beside the model, and modules.json, which would say that it is used, is missing",
            where=str(directory),
            hint=f"put modules.json back, as sentence-transformers wrote it, or remove {name}: a pooling is assumed then",
        )
    architectures = getattr(config, "architectures", None) or [""]
    last = architectures[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
    mode = "lasttoken" if last else "mean"
    described = f"{mode} pooling is assumed: there is no modules.json that says how tokens become an embedding"
    step = partial(pooled, modes=(mode,), prompt_length=0)
    return Embedder((step,), described, auto_class=auto_class)


def _after_transformer(
    entries: tuple[ModuleEntry, ...], directory: Path
) -> tuple[ModuleEntry, ...]:
    if not entries or entries[0].kind != "Transformer":
        first = entries[0].kind if entries else "nothing"
        raise ModelError(
            f"the model begins with {first}, not with a Transformer",
            where=str(directory / "modules.json"),
            hint="take an embedding model that has attention heads",
        )
    folder = entries[0].folder
    if folder != transformer_folder(directory):
        raise ModelError(
            f"modules.json says that the transformer lies in {folder}, and there is none",
            where=str(directory / folder),
            hint=AGAIN,
        )
    return entries[1:]


def _prompt_length(prompt: str, tokenizer: Any, lower_case: bool, max_length: int) -> int:
    """Return how many tokens a prompt begins a text with."""
    if not prompt:
        return 0
    ids = lower_casing(tokenizer, lower_case)(prompt, truncation=True, max_length=max_length)
    tokens = ids["input_ids"]
    return len(tokens) - (bool(tokens) and tokens[-1] in tokenizer.all_special_ids)


def lower_casing(tokenizer: Any, lower_case: bool) -> Any:
    """Return the tokenizer, or a copy of it that lower-cases texts first: special tokens stay as they are.

    Raises:
        ModelError: It has no place for that.
    """
    if not lower_case:
        return tokenizer
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"do_lower_case is on, and a {type(tokenizer).__name__} can't lower-case",
            where="sentence_bert_config.json",
            hint="put tokenizer.json beside the weights",
        )
    lowered = copy.deepcopy(tokenizer)
    own = lowered.backend_tokenizer.normalizer
    lowered.backend_tokenizer.normalizer = Sequence([Lowercase(), *([own] if own else [])])
    return lowered


def embeds_sentences(directory: Path) -> bool:
    """Whether a directory is one of sentence-transformers whose model embeds: rerankers and sparse encoders are others."""
    if not (directory / "modules.json").is_file():
        return False
    return bool(_settings(directory / _MODEL_SETTINGS).get("model_type", _KIND) == _KIND)


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path, error=ModelError, hint=AGAIN) if path.is_file() else {}


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """Return what ``sentence_bert_config.json`` says, or an old version's file."""
    paths = [folder / name for name in _TRANSFORMER_SETTINGS]
    path = next((path for path in paths if path.is_file()), paths[0])
    settings = _settings(path)
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


def _model_settings(directory: Path) -> dict[str, Any]:
    """Return what ``config_sentence_transformers.json`` says."""
    path = directory / _MODEL_SETTINGS
    settings = _settings(path)
    kind = settings.get("model_type", _KIND)
    if kind != _KIND:
        raise _unsupported(f"model_type {kind!r}, which makes no embedding of a sentence", path)
    if not isinstance(settings.get("prompts") or {}, dict):
        raise _unsupported(f"prompts {settings['prompts']!r}", path)
    dimensions = settings.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise _unsupported(f"truncate_dim {dimensions!r}", path)
    return settings


def _default_prompt(model: dict[str, Any], directory: Path) -> str:
    """Return what ``encode`` puts before every text."""
    name, prompts = model.get("default_prompt_name"), model.get("prompts") or {}
    # Both keys always exist, empty if the directory has no such prompt.
    known = {None: "", "query": "", "document": "", **prompts}
    if not isinstance(name, str | None) or name not in known:
        raise ModelError(
            f"default_prompt_name is {name!r}, and there is no such prompt",
            where=str(directory / _MODEL_SETTINGS),
            hint=AGAIN,
        )
    return str(known[name] or "")


def _longest_input(settings: dict[str, Any], config: Any, tokenizer: Any) -> int:
    """Return the longest input, as sentence-transformers settles it."""
    given = settings.get("max_seq_length")
    if given is None:
        positions = getattr(config, "max_position_embeddings", None)
        limits = [getattr(tokenizer, "model_max_length", None), positions]
        return min([_NO_LIMIT, *(size for size in limits if type(size) is int and size > 0)])
    if type(given) is not int or given < 2:
        where = _TRANSFORMER_SETTINGS[0]
        what = f"max_seq_length is {given!r}, not a number of tokens"
        raise ModelError(what, where=where, hint=AGAIN)
    return given


def _unsupported(what: str, path: Path) -> ModelError:
    return ModelError(
        f"the model asks for {what}: headprune can't compute the same embeddings",
        where=str(path),
        hint="take it out and save the model again, if embeddings without it are meant",
    )
