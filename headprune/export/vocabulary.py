"""A byte-level BPE tokenizer as GGUF has it: tokens, their types, merges, and the name of the rule that splits words.

A file names the splitting rule instead of holding it, so a tokenizer is written only if its rule is one of those known here;
all others are refused, since an engine would split by another rule and say nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headprune.errors import UnsupportedError


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    Args:
        pre: Name of the rule that splits words.
        tokens: By id; rows of the embedding that no token uses are ``[PAD...]``.
        types: By id.
        merges: Two tokens each, best first.
        special: Ids by role: bos, eos, unk, sep, pad, mask.
        add_bos: Whether a text starts with bos.
        add_eos: Whether a text ends with eos.
        chat_template: A Jinja template.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_WORDS = {**_BYTES, "use_regex": True}
_AS_BYTES = {**_BYTES, "use_regex": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


# (steps of the pre-tokenizer, whether whole words are looked up before merging): the rule's name in llama.cpp.
_RULES: tuple[tuple[list[dict[str, Any]], bool, str], ...] = (
    ([_WORDS], False, "gpt-2"),
    ([{"type": "Digits", "individual_digits": True}, _WORDS], False, "smollm"),
    ([_split(_LLAMA3), _AS_BYTES], True, "llama-bpe"),
    ([_split(_LLAMA3), _AS_BYTES], False, "smaug-bpe"),
)


def read_vocabulary(tokenizer: Any, *, rows: int, where: str) -> Vocabulary:
    """Return a tokenizer as GGUF has it, for a model whose embedding has so many rows.

    Raises:
        UnsupportedError: It isn't byte-level BPE, or does something that a file can't say.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spec = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    reason = _difference(spec, tokenizer, rows=rows)
    if reason is not None:
        raise UnsupportedError(
            f"the tokenizer can't be written as GGUF: {reason}",
            where=where,
            hint="byte-level BPE can be (GPT-2's, SmolLM's or Llama 3's rules); `tokenizer=False` writes the weights alone",
        )
    model = spec["model"]
    added = {token["id"]: token for token in spec["added_tokens"]}
    plain = {index: token for token, index in model["vocab"].items()}
    tokens = [added[i]["content"] if i in added else plain.get(i, f"[PAD{i}]") for i in range(rows)]
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    add_bos, add_eos = _frame(tokenizer) or (False, False)
    template = getattr(tokenizer, "chat_template", None)
    return Vocabulary(
        pre=str(_rule(spec)),
        tokens=tuple(tokens),
        types=tuple(_type(i, added, plain) for i in range(rows)),
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        special={role: index for role, index in ids.items() if index is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=template if isinstance(template, str) else None,
    )


_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")


def _difference(spec: dict[str, Any], tokenizer: Any, *, rows: int) -> str | None:
    """Return what of a tokenizer a file can't say."""
    model = spec["model"]
    if model.get("type") != "BPE":
        return f"it is a {model.get('type') or 'slow'} tokenizer, not byte-level BPE"
    if _rule(spec) is None:
        return "it splits words by a rule that isn't known here"
    if spec.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        return f"it normalises texts ({spec['normalizer']['type']})"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "it marks the ends of words"
    last = max([*model["vocab"].values(), *(token["id"] for token in spec["added_tokens"])])
    if last >= rows:
        return f"it has a token {last}, and the model's embedding has {rows} rows"
    if _frame(tokenizer) is None:
        return "it puts more around a text than bos and eos"
    return None


def _rule(spec: dict[str, Any]) -> str | None:
    """Return the name of the rule that splits words, None where it isn't known."""
    step = spec.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    # Offsets and empty strings are no part of what a word is.
    steps = [{key: value for key, value in s.items() if key != "trim_offsets"} for s in steps]
    looks_up = bool(spec["model"].get("ignore_merges"))
    return next(
        (name for known, words, name in _RULES if (known, words) == (steps, looks_up)), None
    )


def _type(index: int, added: Mapping[int, Any], plain: Mapping[int, str]) -> int:
    from gguf import TokenType

    if index in added:
        return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
    return TokenType.NORMAL if index in plain else TokenType.UNUSED


def _frame(tokenizer: Any) -> tuple[bool, bool] | None:
    """Return whether a text starts with bos and ends with eos; None where something else is put around it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            start = [tokenizer.bos_token_id] if bos else []
            if whole == start + bare + ([tokenizer.eos_token_id] if eos else []):
                return bos, eos
    return None
