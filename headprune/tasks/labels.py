"""What the cells of a label column mean: a class of the model, a number, or that nobody gave the row a label.

A column is read in one way: by the names of the model's classes, or by its indices, never some of each.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headprune.errors import DataError, ModelError, did_you_mean
from headprune.tasks.columns import number_of
from headprune.tasks.tables import Table

_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
_NO_LABEL = ("", "-")
_FEW = 12


@dataclass(frozen=True)
class ClassLabels:
    """A column of classes.

    Args:
        indices: The model's index of each row's label; None where it has none.
        remarks: How the labels were read, and what is odd about them.
    """

    indices: tuple[int | None, ...]
    remarks: tuple[str, ...] = ()


def read_classes(table: Table, column: str, config: Any) -> ClassLabels:
    """Return the model's class of every row.

    Names win. Where the data names its own classes, index 0 of the data may be index 1 of the model. Labels that are neither
    names nor indices may be the numbers in the names (1 is "1 star").

    Raises:
        DataError: The labels aren't classes of the model, or may mean different ones.
        ModelError: The model's classes aren't numbered as its outputs are.
    """
    names = {int(index): str(name).strip() for index, name in config.id2label.items()}
    if set(names) != set(range(len(names))):
        raise ModelError(
            f"the model's classes are numbered {', '.join(map(str, sorted(names)[:_FEW]))}, and outputs count from 0",
            where="config.json (id2label)",
            hint="number them from 0 on, in the order of the outputs",
        )
    cells = [row[column] for row in table.rows]
    present = [cell for cell in cells if not _is_missing(cell, names)]
    distinct = {_text(cell): whole_number(cell) for cell in present}
    if not distinct:
        return ClassLabels((None,) * len(cells))
    known, remarks = _meanings(distinct, names, table=table, column=column, rows=len(present))
    if len(known) < len(distinct):
        raise _unknown(cells, known, names, table=table)
    if any(whole_number(cell) == -1 and _is_missing(cell, names) for cell in cells):
        remarks = (*remarks, *_on_minus_one(distinct, names, table=table))
    indices = (None if _is_missing(cell, names) else known[_text(cell)] for cell in cells)
    return ClassLabels(tuple(indices), remarks)


def _unknown(
    cells: Sequence[Any], known: Mapping[str, int], names: Mapping[int, str], *, table: Table
) -> DataError:
    """Return an error for the first row whose label isn't known; a word comes before numbers, which it may have made unknown."""
    rows = [
        (whole_number(cell) is not None, row)
        for row, cell in enumerate(cells)
        if not _is_missing(cell, names) and _text(cell) not in known
    ]
    _, row = min(rows)
    cell = cells[row]
    if list(names.values()).count(_text(cell)) > 1:
        what, where = "is the name of several classes", "config.json (id2label)"
        hint = "give each class a name of its own"
    else:
        what, where = "the model doesn't know", f"`data={table.name}`"
        hint = did_you_mean(str(cell), list(names.values())[:_FEW])
    return DataError(
        f"{table.name_of(row)} has the label {repr(cell)[:80]}, which {what}",
        where=where,
        hint=hint,
    )


def read_numbers(table: Table, column: str) -> tuple[float | None, ...]:
    """Return the number of every row, None where it has none; -1 among numbers of 0 and more says that there is none.

    Raises:
        DataError: A cell is not a number.
    """
    numbers = [
        None if _is_empty(row[column]) else number_of(table, index, column)
        for index, row in enumerate(table.rows)
    ]
    others = {number for number in numbers if number not in (None, -1.0)}
    if min(others, default=0.0) < 0 or (others and others <= {0.0, 1.0}):
        return tuple(numbers)  # a scale that goes below 0, such as -1, 0, 1
    return tuple(None if number == -1.0 else number for number in numbers)


def whole_number(label: Any) -> int | None:
    """Return the whole number that a cell holds, as it is written: "01" is none.

    >>> whole_number("1"), whole_number(1.0), whole_number("01"), whole_number("1.5")
    (1, 1, None, None)
    """
    if isinstance(label, bool | int):
        return int(label)
    if isinstance(label, float):
        return int(label) if label.is_integer() else None
    text = str(label).strip()
    return int(float(text)) if _WHOLE.fullmatch(text) else None


def _text(label: Any) -> str:
    return str(label).strip()


def _is_empty(label: Any) -> bool:
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or (isinstance(label, str) and label.strip() in _NO_LABEL)


def _is_missing(label: Any, names: Mapping[int, str]) -> bool:
    """Whether a row has no label: none is there, or what data sets write in its place, unless the model has such a class."""
    if label is None or _text(label) in names.values():
        return label is None
    return _is_empty(label) or whole_number(label) == -1


def _by_name(names: Mapping[int, str]) -> dict[str, int]:
    """Return the index of every name, in any case too where only one class is called so."""
    index_of: dict[str, int] = {}
    for fold in (str.casefold, str):
        called = [fold(name) for name in names.values()]
        index_of |= {fold(n): i for i, n in names.items() if called.count(fold(n)) == 1}
    return index_of


def _meanings(
    distinct: Mapping[str, int | None],
    names: Mapping[int, str],
    *,
    table: Table,
    column: str,
    rows: int,
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the index of every label, and remarks to report; labels that can't be read are left out."""
    index_of = _by_name(names)

    def named(words: Mapping[str, str]) -> dict[str, int]:
        pairs = ((t, index_of.get(w, index_of.get(w.casefold()))) for t, w in words.items())
        return {text: index for text, index in pairs if index is not None}

    own = table.class_names.get(column, ())
    words = {t: own[n] for t, n in distinct.items() if n is not None and 0 <= n < len(own)}
    by_own, by_name = named(words), named({text: text for text in distinct})
    if by_own:
        return by_own, ()
    numbers = {text: number for text, number in distinct.items() if number is not None}
    if len(by_name) == len(distinct) or not numbers or (by_name and len(numbers) < len(distinct)):
        return by_name, ()
    by_index = {text: number for text, number in numbers.items() if 0 <= number < len(names)}
    by_digits = _by_digits(numbers, names)
    if len(numbers) < len(distinct):
        return by_index, ()  # what is no number is to blame
    if len(by_digits) == len(numbers) and by_digits != by_index:
        if len(by_index) == len(numbers):
            raise _ambiguous(table, numbers.values(), names, by_digits)
        number, text = min((number, text) for text, number in numbers.items())
        shown = f"{number} is {names[by_digits[text]]!r}"
        return by_digits, (f"labels are the numbers in the names of the model's classes: {shown}",)
    if len(by_index) < len(numbers) and min(numbers.values()) == 1:
        raise table.error(
            f"the labels go from 1 to {max(numbers.values())}: they seem to count from 1, "
            f"and the model's {len(names)} classes count from 0",
            hint=f"take 1 off every label, or write the names: {_listed(names)}",
        )
    remarks = _on_indices(set(by_index.values()), names, rows=rows)
    if words and _has_own_names(names):
        remarks += (
            f"careful: the data calls its labels otherwise than the model: {_listed(dict(enumerate(own)))}",
        )
    return by_index, remarks


def _by_digits(numbers: Mapping[str, int], names: Mapping[int, str]) -> dict[str, int]:
    """Return the index of every label that is the number in a class's name, where every name has one of its own."""
    digits = {index: re.findall(r"\d+", name) for index, name in names.items()}
    if any(len(each) != 1 for each in digits.values()):
        return {}
    class_of = {int(one): index for index, (one,) in digits.items()}
    if len(class_of) < len(names):
        return {}
    return {text: class_of[number] for text, number in numbers.items() if number in class_of}


def _ambiguous(
    table: Table, numbers: Any, names: Mapping[int, str], by_digits: Mapping[str, int]
) -> DataError:
    first = min(numbers)
    return table.error(
        f"the label {first} may be the model's class {first} ({names[first]!r}), counted from 0, "
        f"or {names[by_digits[str(first)]]!r}, counted from 1",
        hint=f"write the names of the classes: {_listed(names)}",
    )


def _has_own_names(names: Mapping[int, str]) -> bool:
    return any(name != f"LABEL_{index}" for index, name in names.items())


def _on_indices(numbers: set[int], names: Mapping[int, str], *, rows: int) -> tuple[str, ...]:
    remarks: list[str] = []
    count = len(names)
    if _has_own_names(names):
        remarks.append(f"labels are the model's indices: {_listed(names, sorted(numbers))}")
    likely = rows >= 3 * count or numbers == set(range(1, count))
    if count > 2 and min(numbers, default=0) == 1 and likely:
        remarks.append(
            "careful: no row has the label 0: the labels seem to count from 1, and the model's classes count from 0"
        )
    return tuple(remarks)


def _on_minus_one(
    distinct: Mapping[str, int | None], names: Mapping[int, str], *, table: Table
) -> tuple[str, ...]:
    """Return a remark where -1 may be a class of its own: with it there are as many values as classes."""
    numbers, count = set(distinct.values()), len(names)
    if count == 2 and numbers == {1}:
        raise table.error(
            "the labels are -1 and 1, and -1 says that a row has none where classes count from 0",
            hint=f"write 0 and 1, or the names of the classes: {_listed(names)}",
        )
    if None in numbers or len(numbers) + 1 != count:
        return ()
    return (
        f"careful: with -1 the labels have as many values as the model has classes ({count}): if it is one, write the names",
    )


def _listed(names: Mapping[int, str], indices: Sequence[int] | None = None) -> str:
    chosen = sorted(names) if indices is None else indices
    shown = ", ".join(f"{index} is {names[index]!r}" for index in chosen[:_FEW])
    return f"{shown}, ..." if len(chosen) > _FEW else shown
