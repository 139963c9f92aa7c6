"""Local files of rows: the file as it is now, this file and no other, each cell as it was written.

Read with Python's own means and pyarrow. Readers that guess what columns mean, or that keep a copy, aren't asked: they take 007
for 7, change their mind after 10,000 rows, and know an old file by its time.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headprune.errors import DataError, did_you_mean, first_line
from headprune.tasks.delimited import (
    FormatError,
    lines_of,
    read_delimited,
    read_text,
    refuse_other_content,
)
from headprune.untrusted.documents import parse_json


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were read, with where they came from.

    Args:
        name: What was read, as the user named it.
        split: The split of a data set that has some.
        columns: The names of the columns.
        rows: The cells of each row, by column.
        class_names: What the data says of its columns of classes.
        lines: The line of the file that each row begins on, where the format has lines.
        has_header: Whether the columns' names are the first line of a file.
    """

    name: str
    split: str | None
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lines: Sequence[int] = ()
    has_header: bool = False

    def name_of(self, row: int) -> str:
        """Return how messages call a row: by its number from 0 on, and by its line in the file."""
        return f"row {row} (line {self.lines[row]})" if self.lines else f"row {row}"

    def where(self, row: int) -> str:
        """Return where a row came from, as messages say it."""
        return f"`data={self.name}`, {self.name_of(row)}"

    def groups(self, column: str) -> tuple[str, ...]:
        """Return the values of a column, as texts in the order of the rows; rows without one are in no group.

        Raises:
            DataError: There is no such column.
        """
        if column not in self.columns:
            raise self.error(
                f"there is no column {column!r}", hint=did_you_mean(column, self.columns)
            )
        values = (row[column] for row in self.rows)
        return tuple(dict.fromkeys(str(value) for value in values if value not in (None, "")))

    def only(self, where: str) -> "Table":
        """Return the rows with a value in a column, ``COLUMN=VALUE``.

        Raises:
            DataError: There is no such column, or no such row.
        """
        column, _, value = where.partition("=")
        groups = self.groups(column)
        if value not in groups:
            raise self.error(
                f"no row has {value!r} in {column!r}", hint=did_you_mean(value, groups[:20])
            )
        kept = [index for index, row in enumerate(self.rows) if str(row[column]) == value]
        return replace(
            self,
            rows=[self.rows[index] for index in kept],
            lines=[self.lines[index] for index in kept] if self.lines else (),
        )

    def error(self, what: str, *, hint: str) -> DataError:
        """Return an error of these data."""
        return DataError(what, where=f"`data={self.name}`", hint=hint)


def _read_delimited(path: Path, separator: str) -> Table:
    header, records = read_delimited(read_text(path), separator)
    columns = _unique(header.cells, "; the first line of the file is read as the header")
    rows = [dict(zip(columns, record.cells, strict=True)) for record in records]
    return Table(
        "", None, columns, rows, lines=[record.line for record in records], has_header=True
    )


def _unique(names: Iterable[str], remark: str = "") -> tuple[str, ...]:
    """Return the names of columns."""
    columns = tuple(names)
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise FormatError(
            f"two columns have the same name, {twice!r}",
            hint=f"give each column a name of its own{remark}",
        )
    return columns


def _read_lines(path: Path) -> Table:
    rows = [{"text": line} for line in lines_of(read_text(path))]
    return Table("", None, ("text",), rows, lines=range(1, len(rows) + 1))


def _read_json(path: Path) -> Table:
    """Read a list of objects, or an object a line."""
    text = read_text(path)
    try:
        document = _parsed(text)
    except FormatError:
        if text.lstrip().startswith("{"):
            return _from_json_lines(text)
        raise
    if isinstance(document, list):
        return _from_objects(document)
    _refuse_wrapped(document)
    return _from_objects([document])


def _refuse_wrapped(document: Any) -> None:
    """Refuse rows inside of an object."""
    inner = document if isinstance(document, dict) else {}
    lists = [name for name, value in inner.items() if isinstance(value, (list, dict))]
    if isinstance(document, dict) and not lists:
        return
    shown = ", ".join(f"{name!r}" for name in lists[:4])
    raise FormatError(
        f"the file is one object with {shown} inside, not a list of rows"
        if lists
        else f"the file is {_kind(document)}, not a list of rows",
        hint="save a list of objects, one a row"
        + (
            f", such as what {lists[0]!r} holds: jq '.[{json.dumps(lists[0])}]' FILE"
            if len(lists) == 1
            else ""
        ),
    )


def _read_json_lines(path: Path) -> Table:
    return _from_json_lines(read_text(path))


def _from_json_lines(text: str) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        rows.append(_parsed(line, number))
        if not isinstance(rows[-1], dict):
            raise FormatError(
                f"it is {_kind(rows[-1])}, not an object",
                hint="write each row as a JSON object on a line of its own; a file that is one list is called .json",
                line=number,
            )
        numbers.append(number)
    return replace(_from_objects(rows), lines=numbers)


def _from_objects(rows: Sequence[Any]) -> Table:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise FormatError(
                f"row {index} is {_kind(row)}, not an object",
                hint='write each row as an object, such as {"text": "...", "label": 0}',
            )
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table("", None, columns, [{name: row.get(name) for name in columns} for row in rows])


def _parsed(text: str, line: int | None = None) -> Any:
    """Return a JSON value in which no key stands twice; ``line`` is its line, where it is one."""
    hint = "repair it: a .json file is a list of objects, a .jsonl file has one object a line"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        column = f"column {error.colno}"
        raise FormatError(
            f"the JSON is damaged: {error.msg}, {column}", hint=hint, line=line or error.lineno
        ) from error
    except RecursionError:
        raise FormatError("the JSON is nested too deep", hint=hint, line=line) from None
    except ValueError as error:
        raise FormatError(
            f"the JSON is damaged: {first_line(error)}", hint=hint, line=line
        ) from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        _unique([name for name, _value in pairs])
    return values


def _kind(value: Any) -> str:
    kinds = ((dict, "an object"), (list, "a list"), (str, "a text"), (type(None), "null"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number or a truth")


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    return _read_columns(path, lambda file: pyarrow.parquet.ParquetFile(file).read())


def _read_arrow(path: Path) -> Table:
    import pyarrow

    def read(file: Any) -> Any:
        is_file = file.read(6) == b"ARROW1"  # else a stream, as data sets are saved
        file.seek(0)
        reader = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        return reader(file).read_all()

    return _read_columns(path, read)


def _read_columns(path: Path, read: Callable[[Any], Any]) -> Table:
    import pyarrow

    with path.open("rb") as file:
        try:
            table = read(file)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise
            file.seek(0)
            refuse_other_content(file.read(64), path.suffix)
            raise FormatError(
                f"the file is damaged, or is no {path.suffix} file: {first_line(error)}",
                hint="make the file again",
            ) from error
    columns = _unique(table.column_names)
    cells = [_cells(table.column(name), name) for name in columns]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]
    return Table("", None, columns, rows, _class_names(table.schema.metadata or {}))


def _cells(column: Any, name: str) -> list[Any]:
    import pyarrow

    try:
        cells: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"column {name!r} holds texts that are not UTF-8", hint="write the texts in UTF-8"
        ) from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise FormatError(
            f"column {name!r} can't be read: {first_line(error)}", hint="leave the column out"
        ) from error
    return cells


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that the ``datasets`` library notes in files that it writes."""
    try:
        noted = parse_json(metadata.get(b"huggingface", b"{}"))
        features = noted.get("info", {}).get("features", {})
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise FormatError(
            f"what the file says of its own columns is damaged: {first_line(error)}",
            hint="make the file again",
        ) from error


FORMATS: dict[str, Callable[[Path], Table]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_lines,
}
"""How files are read, by the ending of their names."""
