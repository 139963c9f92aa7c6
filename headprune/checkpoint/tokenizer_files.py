"""A tokenizer's files are the source's, byte for byte: written anew they may split texts another way."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headprune.anatomy.clone import quiet
from headprune.models import ModelSource, load_tokenizer
from headprune.untrusted import own_files_alone

_PATTERNS = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab*.json", "vocab*.txt", "merges.txt", "*.model", "*.spm", "*.bpe", "*.tiktoken"),
    *("*.jinja", "chat_template*.json"),
)
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
    """Yield the paths of a tokenizer's files, below the directory of its model."""
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
    return load_tokenizer(source) if any(tokenizer_files(source.directory)) else None


def home_of(name: str) -> Path | None:
    """Return the directory that a model or tokenizer was loaded from: a path, or a hub id that lies in the cache."""
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


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
    """Return the ids of texts that a tokenizer must split as before, its own special tokens inside of some."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return {}
    special = [str(token) for token in tokenizer.all_special_tokens][:8]
    inside = (form for token in special for form in (token, f"x{token}y", f"{token} abc {token}"))
    found = {}
    for text in (*_AWKWARD, *inside):
        # Some want words and boxes, or another language; the tokenizers library raises bare exceptions.
        with suppress(Exception):
            found[text] = [int(token) for token in tokenizer(text)["input_ids"]]
    return found
