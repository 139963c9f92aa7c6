"""Rows from local files, the hub or the demo packages; which columns mean what; which rows choose and which report."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from headprune.errors import DataError, did_you_mean
from headprune.tasks.files import open_data, reading

_PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("s1", "s2"),
)
# A pair of these is one only where no other column could be a text.
_WEAK_PAIRS = (("question", "sentence"), ("text", "text_pair"))
_TEXTS = (
    *("text", "sentence", "content", "review", "document", "question", "title"),
    *("passage", "context", "query", "claim", "evidence", "abstract", "body", "headline"),
    *("prompt", "completion", "response", "utterance", "tweet", "comment", "statement"),
)
_LABELS = (
    "label",
    "labels",
    "score",
    "similarity",
    "similarity_score",
    "target",
    "class",
    "intent",
)


_KNOWN = {*_TEXTS, *_LABELS, *(name for pair in _PAIRS for name in pair), "id", "idx", "index"}
# Words, or writing that doesn't part its words by spaces.
_WORDS = re.compile(
    r"[^\W\d_]\S*\s+\S*[^\W\d_]|[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{4}"
)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
# A name in a header: a word or two.
_NAME = re.compile(r"\s*([^\W\d][\w.\-]*( [\w.\-]+)?)?\s*")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were read, with where they came from.

    Args:
        name: What was read, as the user named it.
        split: The split of a data set that has some.
        columns: The names of the columns.
        rows: The cells of each row, by column.
        class_names: What the data says of its columns of classes.
        lines: The line of the file that each row begins on, where there are lines.
        has_header: Whether the columns' names are the first line of a file.
    """

    name: str
    split: str | None
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lines: Sequence[int] = ()
    has_header: bool = False

    def place(self, row: int) -> str:
        """Return how messages call a row: by its number from 0 on, and by its line in the file."""
        return f"row {row} (line {self.lines[row]})" if self.lines else f"row {row}"

    def where(self, row: int) -> str:
        """Return where a row came from, as messages say it."""
        return f"--data {self.name}, {self.place(row)}"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read, and why these. ``label`` is empty where the task reads none."""

    texts: tuple[str, ...]
    label: str
    why: str


def read_table(source: str, *, split: str | None = None) -> Table:
    """Read ``FILE``, ``HUB_ID[:CONFIG]`` or ``demo:NAME``.

    Args:
        source: What to read. The ending tells the format of a file: csv, tsv, json, jsonl, parquet, arrow, txt.
        split: The split of a hub or demo data set (``train`` where none is given). A local file has none to be named.

    Raises:
        DataError: The file is missing, empty, of an unknown format or malformed; or the data set can't be had.
    """
    with reading(source):
        content, split = open_data(source, split)
    if not content.rows:
        raise DataError("the data has no rows", where=f"--data {source}", hint="check the file")
    return Table(source, split, *content)


def choose_columns(
    table: Table,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    num_texts: tuple[int, ...] = (1, 2),
    needs_label: bool = True,
) -> Columns:
    """Decide which columns hold the texts and the label.

    In this order: what the user said, names everybody uses, the only column of texts. Where several could be meant, the user is
    asked. What was chosen, and why, is in the result.

    Raises:
        DataError: A named column isn't there, nothing fits, or several do.
    """
    named = [*texts, *([label] if label else [])]
    for name in named:
        if name not in table.columns:
            raise DataError(
                f"the data has no column {name!r}",
                where=f"--data {table.name}",
                hint=did_you_mean(name, table.columns) + _about_header(table),
            )
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise DataError(
            f"the column {twice!r} is named twice",
            where=f"--text {','.join(texts)}" + (f" --label {label}" if label else ""),
            hint="name each column once: texts with --text, the label with --label",
        )
    if texts and len(texts) not in num_texts:
        raise DataError(
            f"the task reads {' or '.join(map(str, num_texts))} text columns, and {len(texts)} were named",
            where="--text",
            hint="name them like --text sentence1,sentence2",
        )
    if not texts and label is None and _about_header(table):
        raise DataError(
            f"the first line of the file isn't a header: it names the columns {_listed(table.columns)}",
            where=f"--data {table.name}",
            hint="give the file a header, such as text,label; or, where it is one, say --text NAME and --label NAME",
        )
    why = ["as told"] if texts or label else []
    if needs_label and label is None:
        label = _guess_label(table, texts, num_texts)
        why.append("label by its name")
    if not texts:
        texts, why_texts = _guess_texts(table, num_texts, label)
        why.insert(0, why_texts)
    return Columns(tuple(texts), (label or "") if needs_label else "", ", ".join(why))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) if len(name) < 60 else f"{name[:50]!r}..." for name in names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"


def _about_header(table: Table) -> str:
    """Return a remark where the first line of a file doesn't look like names of columns."""
    if not table.has_header or any(_folded(name) in _KNOWN for name in table.columns):
        return ""
    if all(_NAME.fullmatch(name) for name in table.columns):
        return ""
    return "; the first line of the file is read as the header"


def _folded(name: str) -> str:
    return name.strip().casefold()


def _guess_label(table: Table, texts: Sequence[str], num_texts: tuple[int, ...]) -> str:
    known = [name for name in table.columns if _folded(name) in _LABELS and name not in texts]
    if len(known) == 1:
        return known[0]
    least = len(texts) or min(num_texts)
    if len(table.columns) <= least:
        wanted = " or ".join(f"{count} text{'s' if count > 1 else ''}" for count in num_texts)
        raise DataError(
            f"the task reads {wanted} and a label, and the data has {_listed(table.columns)} alone",
            where=f"--data {table.name}",
            hint="give data with all of them, or name another --task (causal-lm reads plain text)",
        )
    raise DataError(
        f"several columns of the data could be the label: {_listed(known)}"
        if known
        else "no column of the data looks like the label",
        where=f"--data {table.name}",
        hint=f"say --label {known[0] if known else 'NAME'}; the columns are {_listed(table.columns)}{_about_header(table)}",
    )


def _guess_texts(
    table: Table, num_texts: tuple[int, ...], label: str | None
) -> tuple[tuple[str, ...], str]:
    free = [name for name in table.columns if name != label and _folded(name) not in _LABELS]
    texts = [name for name in free if _could_be_text(table, name)]
    pairs = [
        pair
        for first, second in _PAIRS
        if len(pair := [name for name in free if _folded(name) in (first, second)]) == 2
        and {_folded(name) for name in pair} == {first, second}
        and ((first, second) not in _WEAK_PAIRS or set(texts) <= set(pair))
    ]
    if 2 in num_texts and len(pairs) == 1:
        return tuple(sorted(pairs[0], key=_rank)), "texts by their names"
    exact = [name for name in texts if _folded(name) == "text"]
    if num_texts == (1,) and len(exact) == 1:
        return tuple(exact), "text by its name"
    if len(texts) == 1 and 1 in num_texts:
        known = _folded(texts[0]) in _TEXTS
        return tuple(texts), "text by its name" if known else "the only text there is"
    if num_texts == (2,) and len(texts) == 2:
        return tuple(texts), "the only texts there are"
    words = [name for name in free if _holds(table, name, lambda cell: not _NUMBER.fullmatch(cell))]
    if not texts and len(words) in num_texts and len(words) == 1:
        return tuple(words), "the only text there is"
    could = texts or words
    raise DataError(
        f"several columns of the data could be the text: {_listed(could)}"
        if len(could) > 1
        else f"the task reads {' or '.join(map(str, num_texts))} text columns, and {_listed(could) or 'no column'} could be one",
        where=f"--data {table.name}",
        hint=f"say {_ways(num_texts)}; the columns are {_listed(table.columns)}{_about_header(table)}",
    )


def _ways(num_texts: Sequence[int]) -> str:
    return " or ".join("--text NAME" if n == 1 else "--text NAME,NAME (a pair)" for n in num_texts)


def _rank(name: str) -> int:
    """Return whether a column is the first or the second of the pairs that it belongs to."""
    return max(pair.index(_folded(name)) for pair in _PAIRS if _folded(name) in pair)


def _could_be_text(table: Table, column: str) -> bool:
    """Whether a column is called like a text and holds something, or mostly holds words."""
    cells = [row[column] for row in table.rows if row[column] not in (None, "")]
    if _folded(column) in _TEXTS or any(_folded(column) in pair for pair in _PAIRS):
        return bool(cells)
    words = sum(isinstance(cell, str) and bool(_WORDS.search(cell[:1000])) for cell in cells)
    return 2 * words > len(cells)


def _holds(table: Table, column: str, test: Callable[[str], bool]) -> bool:
    cells = (row[column] for row in table.rows)
    return any(isinstance(cell, str) and test(cell) for cell in cells if cell)


def text_of(table: Table, row: int, column: str, *, may_be_empty: bool = False) -> str:
    """Return a text cell.

    Raises:
        DataError: The cell is not a text, or is empty where it may not be.
    """
    value = table.rows[row][column]
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        shown = repr(value)
        raise DataError(
            f"{table.place(row)} has no text in column {column!r} "
            f"(it holds {shown if len(shown) < 100 else f'{shown[:90]}...'})",
            where=f"--data {table.name}",
            hint="remove the row, or name another column with --text",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{table.place(row)} has a text in column {column!r} that is not Unicode ({error.reason})",
            where=f"--data {table.name}",
            hint="repair or remove the row",
        ) from error
    return value


def texts_of(table: Table, row: int, columns: Columns) -> tuple[str, ...]:
    """Return the text cells of a row.

    Raises:
        DataError: One is empty or not a text.
    """
    return tuple(text_of(table, row, name) for name in columns.texts)


def number_of(table: Table, row: int, column: str) -> float:
    """Return a numeric cell.

    Raises:
        DataError: The cell is not a number, or is none that can be computed with.
    """
    value = table.rows[row][column]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    number = math.nan
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        shown = repr(value)
        raise DataError(
            f"{table.place(row)} has {shown if len(shown) < 100 else f'{shown[:90]}...'} in column {column!r}, "
            "which is not a number, or no finite one",
            where=f"--data {table.name}",
            hint="repair or remove the row, or name the column of scores with --label",
        )
    return number
