"""Parsed sentences: CoNLL-U files, and where the words of a sentence lie among a model's tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headprune.batch import Batch
from headprune.errors import DataError, UnsupportedError
from headprune.tasks.batches import batches_of_ids
from headprune.tasks.plain import with_decoder
from headprune.untrusted.documents import read_text

SUFFIX = ".conllu"
_FIELDS = 10
_ROWS = 16


@dataclass(frozen=True)
class Sentence:
    """A sentence with its dependency tree.

    Args:
        words: Its words.
        heads: The place of each word's head; -1 for the root.
        relations: The relation of each word to its head, without subtypes: ``nmod`` for ``nmod:poss``.
        text: The sentence as it was written.
        starts: Where each word starts in the text.
    """

    words: tuple[str, ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    text: str
    starts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tree:
    """A sentence's tree among the tokens of a row.

    Args:
        members: True where a position is a piece of a word; words without a piece (they were cut off) are left out.
        heads: Place of each word's head among these words; -1 where it has none.
        relations: The relation of each word to its head.
    """

    members: Bool[Tensor, "words positions"]
    heads: Int[Tensor, " words"]
    relations: tuple[str, ...]


def read_sentences(path: Path) -> tuple[Sentence, ...]:
    """Read the sentences of a CoNLL-U file; multiword tokens and empty nodes are left out, their words stay.

    Raises:
        DataError: It isn't one.
    """
    sentences: list[Sentence] = []
    rows: list[list[str]] = []
    text = read_text(path, error=DataError, hint="give a file in CoNLL-U, in UTF-8")
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if not line.strip():
            if rows:
                sentences.append(_sentence(rows, path, number - 1))
            rows = []
        elif not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) != _FIELDS:
                raise _malformed(path, number, f"it has {len(fields)} fields, not {_FIELDS}")
            if fields[0].isdigit():
                rows.append(fields)
    if not sentences:
        raise DataError("it holds no sentence", where=str(path), hint="give a file in CoNLL-U")
    return tuple(sentences)


def _sentence(rows: Sequence[Sequence[str]], path: Path, line: int) -> Sentence:
    text, starts = "", []
    for row in rows:
        starts.append(len(text))
        text += row[1] + ("" if "SpaceAfter=No" in row[9].split("|") else " ")
    heads = [int(row[6]) - 1 if row[6].isdigit() else len(rows) for row in rows]
    if not all(-1 <= head < len(rows) for head in heads):
        raise _malformed(path, line, "a word of the sentence that ends here has no head in it")
    return Sentence(
        tuple(row[1] for row in rows),
        tuple(heads),
        tuple(row[7].partition(":")[0] for row in rows),
        text.rstrip(),
        tuple(starts),
    )


def _malformed(path: Path, line: int, what: str) -> DataError:
    return DataError(
        f"line {line}: {what}",
        where=str(path),
        hint="give a file in CoNLL-U (universaldependencies.org/format.html)",
    )


def sentence_batches(
    sentences: Sequence[Sentence], tokenizer: Any, *, max_length: int, decoder_start: int | None
) -> tuple[tuple[Batch, ...], dict[int, Tree]]:
    """Turn sentences into batches, and say where their words lie.

    Args:
        sentences: The sentences.
        tokenizer: The model's, which must tell where in the text its tokens lie.
        max_length: The longest row in tokens; what is longer is cut.
        decoder_start: The token at the start of what a decoder is given, the sentence again; None where there is none.

    Returns:
        The batches, and the tree of each sentence by its place.

    Raises:
        UnsupportedError: The tokenizer doesn't tell.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(
            "the tokenizer doesn't tell where its tokens lie in a text",
            where=type(tokenizer).__name__,
            hint="syntax takes a fast tokenizer (tokenizer.json)",
        )
    encoded = [
        tokenizer(
            sentence.text,
            truncation=True,
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        for sentence in sentences
    ]
    rows, padding = [one["input_ids"] for one in encoded], tokenizer.pad_token_id or 0
    batches = batches_of_ids(rows, batch_size=_ROWS, pad_token_id=padding)
    trees = {
        index: _tree(sentences[index], encoded[index], batch.inputs["input_ids"].shape[1])
        for batch in batches
        for index in batch.indices.tolist()
    }
    if decoder_start is not None:
        again = [[decoder_start, *row[:-1]] for row in rows]
        batches = tuple(with_decoder(batch, again, padding) for batch in batches)
    return batches, trees


def _tree(sentence: Sentence, encoded: Any, length: int) -> Tree:
    """Return the tree with each token given to the word in which its first letter lies."""
    members = torch.zeros(len(sentence.words), length, dtype=torch.bool)
    pairs = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    for position, ((start, stop), is_special) in enumerate(pairs):
        first = start + len(sentence.text[start:stop]) - len(sentence.text[start:stop].lstrip())
        if not is_special and first < stop:
            members[bisect_right(sentence.starts, first) - 1, position] = True
    has_piece = members.any(1)
    place = torch.where(has_piece, has_piece.cumsum(0) - 1, -1)
    heads = torch.tensor(sentence.heads)
    heads = torch.where(heads < 0, -1, place[heads.clamp_min(0)])
    kept = has_piece.nonzero().flatten().tolist()
    return Tree(members[kept], heads[kept], tuple(sentence.relations[word] for word in kept))
