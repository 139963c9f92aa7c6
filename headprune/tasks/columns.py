"""Which columns hold the texts and the labels, and what their cells hold: texts and numbers."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from headprune.errors import DataError, did_you_mean
from headprune.tasks.catalogue import ColumnNames
from headprune.tasks.rows import Example
from headprune.tasks.tables import Table

# Words, or writing that doesn't part its words by spaces.
_WORDS = re.compile(
    r"[^\W\d_]\S*\s+\S*[^\W\d_]|[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{4}"
)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
# A name in a header: a word or two.
_NAME = re.compile(r"\s*([^\W\d][\w.\-]*( [\w.\-]+)?)?\s*")
_COMMON_NAMES = ColumnNames()


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read, and why these. ``label`` is empty where the task reads none."""

    texts: tuple[str, ...]
    label: str
    why: str


def choose_columns(
    table: Table,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    num_texts: tuple[int, ...] = (1, 2),
    needs_label: bool = True,
    names: ColumnNames = _COMMON_NAMES,
) -> Columns:
    """Decide which columns hold the texts and the label.

    In this order: columns that the user names, columns with usual names, the only column of texts. If several columns fit, the
    user must name one. The result has the columns and the reason.

    Args:
        table: The rows.
        texts: The text columns that the user names.
        label: The label column that the user names.
        num_texts: How many text columns the task may read.
        needs_label: Whether the task reads a label.
        names: The usual names of columns.

    Raises:
        DataError: A named column isn't there, nothing fits, or several do.
    """
    _check_named(table, texts, label, num_texts)
    if not texts and label is None and _about_header(table, names):
        raise table.error(
            f"the first line of the file isn't a header: it names the columns {_listed(table.columns)}",
            hint="give the file a header, such as text,label; or, where it is one, say `text=NAME` and `label=NAME`",
        )
    why = ["as told"] if texts or label else []
    if needs_label and label is None:
        label = _guess_label(table, texts, num_texts, names)
        why.append("label by its name")
    if not texts:
        texts, why_texts = _guess_texts(table, num_texts, label, names)
        why.insert(0, why_texts)
    return Columns(tuple(texts), (label or "") if needs_label else "", ", ".join(why))


def _check_named(
    table: Table, texts: Sequence[str], label: str | None, num_texts: tuple[int, ...]
) -> None:
    named = [*texts, *([label] if label else [])]
    for name in named:
        if name not in table.columns:
            raise table.error(
                f"the data has no column {name!r}",
                hint=did_you_mean(name, table.columns) + _about_header(table, _COMMON_NAMES),
            )
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise DataError(
            f"the column {twice!r} is named twice",
            where=f"`text={','.join(texts)}`" + (f" `label={label}`" if label else ""),
            hint="name each column once: texts with `text`, the label with `label`",
        )
    if texts and len(texts) not in num_texts:
        raise DataError(
            f"the task reads {' or '.join(map(str, num_texts))} text columns, and {len(texts)} were named",
            where="`text`",
            hint="name them like `text=sentence1,sentence2`",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) if len(name) < 60 else f"{name[:50]!r}..." for name in names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"


def _about_header(table: Table, names: ColumnNames) -> str:
    """Return a remark where the first line of a file doesn't look like names of columns."""
    known = {*names.texts, *names.labels, *sum(names.pairs, ()), "id", "idx", "index"}
    if not table.has_header or any(_folded(name) in known for name in table.columns):
        return ""
    if all(_NAME.fullmatch(name) for name in table.columns):
        return ""
    return "; the first line of the file is read as the header"


def _folded(name: str) -> str:
    return name.strip().casefold()


def _guess_label(
    table: Table, texts: Sequence[str], num_texts: tuple[int, ...], names: ColumnNames
) -> str:
    known = [name for name in table.columns if _folded(name) in names.labels and name not in texts]
    if len(known) == 1:
        return known[0]
    if len(table.columns) <= (len(texts) or min(num_texts)):
        reads = " or ".join(f"{count} text{'s' if count > 1 else ''}" for count in num_texts)
        raise table.error(
            f"the task reads {reads} and a label, and the data has {_listed(table.columns)} alone",
            hint="give data with all of them, or name another `task` (causal-lm reads plain text)",
        )
    raise table.error(
        f"several columns of the data could be the label: {_listed(known)}"
        if known
        else "no column of the data looks like the label",
        hint=f"say `label={known[0] if known else 'NAME'}`; "
        f"the columns are {_listed(table.columns)}{_about_header(table, names)}",
    )


def _guess_texts(
    table: Table, num_texts: tuple[int, ...], label: str | None, names: ColumnNames
) -> tuple[tuple[str, ...], str]:
    free = [name for name in table.columns if name != label and _folded(name) not in names.labels]
    texts = [name for name in free if _could_be_text(table, name, names)]
    pairs = [
        pair
        for first, second in names.pairs
        if len(pair := [name for name in free if _folded(name) in (first, second)]) == 2
        and {_folded(name) for name in pair} == {first, second}
        and ((first, second) not in names.weak_pairs or set(texts) <= set(pair))
    ]
    if 2 in num_texts and len(pairs) == 1:
        # A name may be the first of one pair and the second of another.
        ranks = {
            name: max(pair.index(_folded(name)) for pair in names.pairs if _folded(name) in pair)
            for name in pairs[0]
        }
        return tuple(sorted(pairs[0], key=ranks.__getitem__)), "texts by their names"
    exact = [name for name in texts if _folded(name) == "text"]
    if num_texts == (1,) and len(exact) == 1:
        return tuple(exact), "text by its name"
    if len(texts) == 1 and 1 in num_texts:
        known = _folded(texts[0]) in names.texts
        return tuple(texts), "text by its name" if known else "the only text there is"
    if num_texts == (2,) and len(texts) == 2:
        return tuple(texts), "the only texts there are"
    words = [name for name in free if _holds_words(table, name)]
    if not texts and len(words) == 1 and 1 in num_texts:
        return tuple(words), "the only text there is"
    could = texts or words
    options = {1: "`text=NAME`", 2: "`text=NAME,NAME` (a pair)"}
    raise table.error(
        f"several columns of the data could be the text: {_listed(could)}"
        if len(could) > 1
        else f"the task reads {' or '.join(map(str, num_texts))} text columns, and {_listed(could) or 'no column'} could be one",
        hint=f"say {' or '.join(options[count] for count in num_texts)}; "
        f"the columns are {_listed(table.columns)}{_about_header(table, names)}",
    )


def _could_be_text(table: Table, column: str, names: ColumnNames) -> bool:
    """Whether a column is called like a text and holds something, or mostly holds words."""
    cells = [row[column] for row in table.rows if row[column] not in (None, "")]
    if _folded(column) in (*names.texts, *sum(names.pairs, ())):
        return bool(cells)
    words = sum(isinstance(cell, str) and bool(_WORDS.search(cell[:1000])) for cell in cells)
    return 2 * words > len(cells)


def _holds_words(table: Table, column: str) -> bool:
    """Whether some cell of a column is a text that is no number."""
    cells = (row[column] for row in table.rows)
    return any(isinstance(cell, str) and cell and not _NUMBER.fullmatch(cell) for cell in cells)


def text_of(table: Table, row: int, column: str, *, may_be_empty: bool = False) -> str:
    """Return a text cell; ``may_be_empty`` takes a text of spaces alone.

    Raises:
        DataError: The cell is not a text, or is empty where it may not be.
    """
    value = table.rows[row][column]
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise table.error(
            f"{table.name_of(row)} has no text in column {column!r} (it holds {_shown(value)})",
            hint="remove the row, or name another column with `text`",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise table.error(
            f"{table.name_of(row)} has a text in column {column!r} that is not Unicode ({error.reason})",
            hint="repair or remove the row",
        ) from error
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 100 else f"{shown[:90]}..."


def texts_of(table: Table, row: int, columns: Columns) -> tuple[str, ...]:
    """Return the text cells of a row.

    Raises:
        DataError: One is empty or not a text.
    """
    return tuple(text_of(table, row, name) for name in columns.texts)


def examples_of(
    table: Table, columns: Columns, targets: Sequence[float | int | None] | None = None
) -> tuple[Example, ...]:
    """Return every row as an example, with a target for each where there are labels.

    Raises:
        DataError: A text is empty, or no text.
    """
    return tuple(
        Example(
            texts_of(table, row, columns),
            None if targets is None else targets[row],
            where=table.where(row),
        )
        for row in range(len(table.rows))
    )


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
        raise table.error(
            f"{table.name_of(row)} has {_shown(value)} in column {column!r}, which is not a number, or no finite one",
            hint="repair or remove the row, or name the column of scores with `label`",
        )
    return number
