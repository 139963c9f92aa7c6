"""A tokenizer's files are the source's, byte for byte: written anew they may split texts another way."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headprune.anatomy.clone import quiet
from headprune.errors import ModelError, first_line, missing_package, package_error, what_it_says
from headprune.models.find import ModelSource
from headprune.untrusted.recognise import own_files_alone

_PATTERNS = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab*.json", "vocab*.txt", "merges.txt", "*.model", "*.spm", "*.bpe", "*.tiktoken"),
    *("*.jinja", "chat_template*.json"),
)
# What tells that there is a tokenizer: more names than are copied, for families have their own.
_SIGNS = ("*token*", "*vocab*", "*spiece*", "*sentencepiece*", "tekken.json", "*.model", "*.spm")
_FOLDER = "additional_chat_templates"
# Where two tokenizers of one vocabulary part: spaces, breaks, special tokens in a text, accents, digits, case, rare signs.
_AWKWARD = (
    *("Hello world", " hello", "  two  spaces", "trailing ", "a\nb\n\nc", "\ttab", "", " "),
    *(
        "é ü ñ",
        "e\u0301",
        "ﬁne",
        "12 34567",
        "3.14",
        "don't 'quoted'",
        "UPPER lower",
        "日本語 text",
    ),
    *("👍🏽", "\u2581", "a\u00a0b", "<unk> <pad>", "#@!?", "x" * 40),
)


def tokenizer_files(source: Path, tokenizer: Any = None) -> Iterator[Path]:
    """Yield the paths of a tokenizer's files, below the directory of its model; the tokenizer's class may name further ones."""
    own = tuple((getattr(tokenizer, "vocab_files_names", None) or {}).values())
    for path in sorted(source.iterdir()):
        if any(fnmatchcase(path.name, pattern) for pattern in (*_PATTERNS, *own)):
            yield Path(path.name)
    folder = source / _FOLDER
    if folder.is_dir() and not folder.is_symlink():
        yield from (Path(_FOLDER) / path.name for path in sorted(folder.glob("*.jinja")))


def tokenizer_of(source: ModelSource) -> Any:
    """Load a model's tokenizer; None where it has none.

    Raises:
        ModelError: It is damaged.
    """
    return load_tokenizer(source) if _has_tokenizer(source.directory) else None


def home_of(name: str) -> Path | None:
    """Return the directory that a model or tokenizer was loaded from: a path, or a hub id that lies in the cache."""
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def unchanged_source(tokenizer: Any) -> Path | None:
    """Return the directory that a tokenizer was loaded from, if it is still what its files say."""
    home = home_of(str(getattr(tokenizer, "name_or_path", "")))
    if home is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    try:
        with quiet():
            fresh = AutoTokenizer.from_pretrained(
                home, trust_remote_code=False, **own_files_alone(home)
            )
    except (OSError, ValueError, KeyError, ImportError):  # its files are gone, or name foreign code
        return None
    return home if _as_written(fresh) == _as_written(tokenizer) else None


def _as_written(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tokenizer.save_pretrained(folder)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in files}


def awkward_ids(tokenizer: Any) -> dict[str, list[int]]:
    """Return the token ids of texts that a reloaded tokenizer must split alike; some contain its special tokens."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return {}
    special = [str(token) for token in tokenizer.all_special_tokens][:8]
    inside = (form for token in special for form in (token, f"x{token}y", f"{token} abc {token}"))
    ids = {}
    for text in (*_AWKWARD, *inside):
        # Some want words and boxes, or another language; the tokenizers library raises bare exceptions.
        with suppress(Exception):
            ids[text] = [int(token) for token in tokenizer(text)["input_ids"]]
    return ids


def _has_tokenizer(directory: Path) -> bool:
    names = [path.name for path in directory.iterdir()]
    return any(fnmatchcase(name, form) for name in names for form in _SIGNS)


def load_tokenizer(source: ModelSource) -> Any:
    """Load the model's tokenizer.

    Raises:
        ModelError: It is missing or damaged.
    """
    if not _has_tokenizer(source.directory):
        raise ModelError(
            f"{source.name} has no tokenizer",
            where=str(source.directory),
            hint="put its files (tokenizer.json, tokenizer_config.json) beside the weights",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.directory, trust_remote_code=False, **own_files_alone(source.directory)
        )
    # The tokenizers library raises bare Exceptions, and panics, which aren't even that.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable_tokenizer(error, source) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise _without_vocabulary(source, "it knows special tokens alone")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise ModelError(
            f"the model_max_length of {source.name}'s tokenizer is {repr(longest)[:60]}, not a number",
            where=str(source.directory / "tokenizer_config.json"),
            hint="repair it, or fetch the model again",
        )
    return tokenizer


def _without_vocabulary(source: ModelSource, why: str) -> ModelError:
    return ModelError(
        f"the tokenizer of {source.name} has no vocabulary: {why}",
        where=str(source.directory),
        hint="put tokenizer.json, or the files of its vocabulary, beside the weights",
    )


def _unreadable_tokenizer(error: BaseException, source: ModelSource) -> ModelError:
    what, where = f"the tokenizer of {source.name}", str(source.directory)
    # transformers takes a file of SentencePiece that it can't read for one of tiktoken, and asks for the package without a file.
    pieces = any(source.directory.glob("*.model"))
    if not pieces and missing_package(error) == "sentencepiece":
        return _without_vocabulary(source, "neither tokenizer.json nor a file of SentencePiece")
    lacking = pieces and find_spec("sentencepiece") is None
    cause = ImportError("pip install sentencepiece") if lacking else error
    return package_error(cause, what=what, where=where) or ModelError(
        f"{what} can't be loaded: {what_it_says(error)}",
        where=where,
        hint="fetch its files again (tokenizer.json, tokenizer_config.json)",
    )


@contextmanager
def tokenizing(source: ModelSource) -> Iterator[None]:
    """Name a tokenizer that fails on a text: the tokenizers library raises bare exceptions, and panics, which aren't even that.

    Raises:
        ModelError: It does.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer of {source.name} fails on a text: {first_line(error)}",
            where=str(source.directory / "tokenizer.json"),
            hint="repair it, or fetch the model again",
        ) from error
