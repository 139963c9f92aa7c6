"""Examples, and which of them choose or report: drawn by content and seed, never by position; and none is used for both."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headprune.errors import DataError
from headprune.runtime.local import noted_hash
from headprune.tasks.tables import Table


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to be judged: a text, a pair of texts, or a window of tokens.

    ``target`` is a class index, a similarity from 0 to 1, or None. The first ``given`` tokens of a window aren't predicted.
    ``where`` says where it came from, for messages.
    """

    texts: tuple[str, ...] = ()
    target: float | int | None = None
    tokens: tuple[int, ...] = ()
    given: int = 1
    where: str = field(default="`data`", compare=False)

    @property
    def digest(self) -> str:
        """A hash of the content, the same wherever the row stands."""
        content = repr((self.texts, self.target, self.tokens))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def input_digest(self) -> str:
        """A hash of what the model sees, whatever the label says."""
        content = repr((self.texts, self.tokens))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw(examples: Sequence[Example], count: int | None, *, seed: int) -> tuple[Example, ...]:
    """Return ``count`` of the examples, chosen by the seed and their content: the order of the rows doesn't matter."""
    if count is None:
        return tuple(examples)
    return tuple(_shuffled(examples, seed)[:count])


def hold_out(
    examples: Sequence[Example], *, count: int, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split into rows that choose (``count`` of them, at most half) and rows that report."""
    shuffled = _shuffled(examples, seed)
    return set_apart(shuffled, min(count, len(shuffled) // 2))


def set_apart(
    examples: Sequence[Example], count: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the first ``count`` examples, and the other examples whose inputs aren't among these."""
    first = tuple(examples[:count])
    return first, without_inputs(examples[count:], [example.input_digest for example in first])


def without_inputs(examples: Iterable[Example], digests: Iterable[str]) -> tuple[Example, ...]:
    """Return the examples whose inputs have none of these digests."""
    taken = set(digests)
    return tuple(example for example in examples if example.input_digest not in taken)


def with_targets(examples: Iterable[Example], *, column: str) -> tuple[Example, ...]:
    """Return the examples that have a target.

    Raises:
        DataError: None has one.
    """
    labelled = tuple(example for example in examples if example.target is not None)
    if not labelled:
        raise DataError(
            "this split has no labels: every row holds -1, - or nothing",
            where=f"`data`, column {column!r}",
            hint="use a split with labels; `objective=distill` scores without any",
        )
    return labelled


def noted_rows(examples: Iterable[Example], *, earlier: Iterable[str] = ()) -> tuple[str, ...]:
    """Return how artefacts note the inputs of examples, in addition to inputs noted earlier: by keyed hashes."""
    return tuple(sorted({*earlier, *(noted_hash(example.input_digest) for example in examples)}))


def without_noted(examples: Iterable[Example], noted: Iterable[str]) -> tuple[Example, ...]:
    """Return the examples whose inputs were not noted on this machine."""
    taken = set(noted)
    if not taken:
        return tuple(examples)
    return tuple(example for example in examples if noted_hash(example.input_digest) not in taken)


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a hash of the examples' content that doesn't depend on their order."""
    digests = sorted(example.digest for example in examples)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    return sorted(
        examples,
        key=lambda example: hashlib.sha256(f"{seed}:{example.digest}".encode()).digest(),
    )


def without_rows_of(table: Table, other: Table, *, columns: Sequence[str]) -> tuple[Table, int]:
    """Return the table without the rows whose texts stand in ``other`` too, whatever their labels; and how many there were."""
    taken = {_texts(row, columns) for row in other.rows}
    kept = [i for i, row in enumerate(table.rows) if _texts(row, columns) not in taken]
    lines = [table.lines[index] for index in kept] if table.lines else ()
    left = replace(table, rows=[table.rows[index] for index in kept], lines=lines)
    return left, len(table.rows) - len(kept)


def prose_without_rows_of(table: Table, other: Table, *, column: str) -> tuple[Table, int]:
    """Return the rows of one text, with rows that are in ``other`` too emptied; and how many were.

    Blank lines and headings stand in many texts, and stay. A heading is a line of a few words that stands beside a blank line, or
    more than once in a text. Where a row is emptied, its line break stays.
    """
    texts, others = (
        [_texts(row, [column])[0].strip() for row in rows.rows] for rows in (table, other)
    )
    taken = set(others)
    often = {text for each in (texts, others) for text, n in Counter(each).items() if n > 1}
    rows, count = [], 0
    for index, (row, text) in enumerate(zip(table.rows, texts, strict=True)):
        beside = texts[max(0, index - 1) : index + 2]
        is_heading = _is_short(text) and (text in often or "" in beside)
        leaks = text in taken and not is_heading
        count += leaks
        rows.append({**row, column: ""} if leaks else row)
    return replace(table, rows=rows), count


def _is_short(text: str) -> bool:
    return len(text.split()) < 8 and len(text) < 48


def _texts(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    cells = (row[name] for name in columns)
    return tuple(cell if isinstance(cell, str) else repr(cell) for cell in cells)
