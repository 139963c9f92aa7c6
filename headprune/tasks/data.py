"""Rows from local files, the hub or the demo packages; which columns mean what; which rows choose and which report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headprune.errors import DataError, did_you_mean
from headprune.tasks.files import open_data, reading

_PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("s1", "s2"),
)
_TEXTS = ("text", "sentence", "content", "review", "document", "question", "title")
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


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were read, with where they came from."""

    name: str
    split: str | None
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read, and why these. ``label`` is empty where the task reads none."""

    texts: tuple[str, ...]
    label: str
    why: str


def read_table(source: str, *, split: str | None = None) -> Table:
    """Read ``FILE``, ``HUB_ID[:CONFIG]`` or ``demo:NAME``.

    Args:
        source: What to read. The suffix tells the format of a file: csv, tsv, json, jsonl, parquet, txt.
        split: The split of a hub or demo data set (``train`` where none is given). A local file has none.

    Raises:
        DataError: The file is missing, empty, of an unknown format or malformed; or the data set can't be had.
    """
    with reading(source):
        table, split = open_data(source, split)
        rows = list(table)  # here texts are decoded
    if not rows:
        raise DataError("the data has no rows", where=f"--data {source}", hint="check the file")
    names = {
        column: tuple(feature.names)
        for column, feature in table.features.items()
        if getattr(feature, "names", None)
    }
    return Table(source, split, tuple(table.column_names), rows, names)


def choose_columns(
    table: Table,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    num_texts: tuple[int, ...] = (1, 2),
    needs_label: bool = True,
) -> Columns:
    """Decide which columns hold the texts and the label.

    In this order: what the user said, names everybody uses, the only column of strings. What was chosen, and why, is in
    the result.

    Raises:
        DataError: A named column isn't there, or nothing fits.
    """
    for name in (*texts, *([label] if label else [])):
        if name not in table.columns:
            raise DataError(
                f"the data has no column {name!r}",
                where=f"--data {table.name}",
                hint=did_you_mean(name, table.columns),
            )
    why = "as told"
    if not texts:
        texts, why = _guess_texts(table, num_texts, label)
    if len(texts) not in num_texts:
        raise DataError(
            f"the task reads {' or '.join(map(str, num_texts))} text columns, and {len(texts)} were named",
            where="--text",
            hint="name them like --text sentence1,sentence2",
        )
    if needs_label and label is None:
        known = [name for name in _LABELS if name in table.columns and name not in texts]
        if not known:
            raise DataError(
                "no column of the data looks like the label",
                where=f"--data {table.name}",
                hint=f"say --label NAME; the columns are {', '.join(table.columns)}",
            )
        label, why = known[0], f"{why}, label by its name"
    return Columns(tuple(texts), (label or "") if needs_label else "", why)


def _guess_texts(
    table: Table, num_texts: tuple[int, ...], label: str | None
) -> tuple[tuple[str, ...], str]:
    if 2 in num_texts:
        for pair in _PAIRS:
            if set(pair) <= set(table.columns):
                return pair, "texts by their names"
    if 1 in num_texts:
        for name in _TEXTS:
            if name in table.columns:
                return (name,), "text by its name"
    strings = [
        name
        for name in table.columns
        if name != label
        and name not in _LABELS
        and any(isinstance(row[name], str) for row in table.rows[:100])
    ]
    if len(strings) in num_texts:
        return tuple(strings), "the only text there is"
    raise DataError(
        f"the task reads {' or '.join(map(str, num_texts))} text columns, and of the data's columns "
        f"{', '.join(strings) or 'none'} could be one",
        where=f"--data {table.name}",
        hint=f"say --text NAME, or --text NAME,NAME; the columns are {', '.join(table.columns)}",
    )


def text_of(table: Table, row: int, column: str) -> str:
    """Return a text cell.

    Raises:
        DataError: The cell is empty or not a text.
    """
    value = table.rows[row][column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"row {row} has no text in column {column!r} (it holds {value!r})",
            where=f"--data {table.name}",
            hint="remove the row, or name another column with --text",
        )
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
        DataError: The cell is not a number.
    """
    value = table.rows[row][column]
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise DataError(
            f"row {row} has {value!r} in column {column!r}, which is not a number",
            where=f"--data {table.name}",
            hint="name the column of scores with --label",
        )
    return float(value)


def without_rows_of(table: Table, other: Table, *, columns: Sequence[str]) -> Table:
    """Return the table without the rows whose texts stand in ``other`` too, whatever their labels."""
    taken = {tuple(row[name] for name in columns) for row in other.rows}
    rows = [row for row in table.rows if tuple(row[name] for name in columns) not in taken]
    return replace(table, rows=rows)
