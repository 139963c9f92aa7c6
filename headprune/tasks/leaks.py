"""Rows that choose heads and stand in the rows that report too: left out, where they are more than blank lines and headings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headprune.tasks.data import Table


def without_rows_of(table: Table, other: Table, *, columns: Sequence[str]) -> tuple[Table, int]:
    """Return the table without the rows whose texts stand in ``other`` too, whatever their labels; and how many there were."""
    taken = {_texts(row, columns) for row in other.rows}
    kept = [i for i, row in enumerate(table.rows) if _texts(row, columns) not in taken]
    lines = [table.lines[index] for index in kept] if table.lines else ()
    left = replace(table, rows=[table.rows[index] for index in kept], lines=lines)
    return left, len(table.rows) - len(kept)


def prose_without_rows_of(table: Table, other: Table, *, column: str) -> tuple[Table, int]:
    """Return rows that are one text, those emptied that stand in ``other`` too; and how many there were.

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
