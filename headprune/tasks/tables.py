"""Local files of rows: the file as it is now, this file and no other, each cell as it was written.

Read with Python's own means and pyarrow. Readers that guess what columns mean, or that keep a copy, aren't asked: they take 007
for 7, change their mind after 10,000 rows, and know an old file by its time.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headprune.errors import first_line
from headprune.tasks.delimited import FormatError, read_delimited
from headprune.untrusted.directories import kind_by_content
from headprune.untrusted.documents import parse_json

_LINE_ENDS = re.compile(r"\r\n|\n|\r")
_TO_UTF8 = "convert it: iconv -f {} -t UTF-8 FILE > NEW_FILE"
_MARKS = (
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "UTF-16"),
)


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

    def place(self, row: int) -> str:
        """Return how messages call a row: by its number from 0 on, and by its line in the file."""
        return f"row {row} (line {self.lines[row]})" if self.lines else f"row {row}"

    def where(self, row: int) -> str:
        """Return where a row came from, as messages say it."""
        return f"--data {self.name}, {self.place(row)}"


def read_file(path: Path) -> Table:
    """Read a file by its ending, one of ``FORMATS``.

    Raises:
        FormatError: It is not what its ending says.
        OSError: It can't be read.
    """
    return FORMATS[path.suffix.lower()](path)


def read_text(path: Path) -> str:
    """Return a text in UTF-8, without the mark that some editors put in front.

    Raises:
        FormatError: It is something else.
    """
    raw = path.read_bytes()
    for marks, name in _MARKS:
        if raw.startswith(marks):
            raise FormatError(
                f"the file's encoding is {name}, not UTF-8", hint=_TO_UTF8.format(name)
            )
    _refuse_other_content(raw, "text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"the byte 0x{raw[error.start]:02x} is not UTF-8: the file has another encoding",
            hint=_TO_UTF8.format("LATIN1"),
            line=_line_of(raw[: error.start].decode("latin-1")),
        ) from error
    if "\0" in text:
        wide = 3 * text.count("\0") > len(text)
        raise FormatError(
            "it holds a NUL character" + ": the encoding may be UTF-16" * wide,
            hint=_TO_UTF8.format("UTF-16") if wide else "repair or remove the line",
            line=_line_of(text[: text.index("\0")]),
        )
    return text


def _refuse_other_content(raw: bytes, expected: str) -> None:
    what, hint = kind_by_content(raw) or ("", expected)
    if not hint.endswith(expected):  # it is what it is called, and damaged
        raise FormatError(f"the file is {what}, not a {expected} file", hint=hint)


def _line_of(text_before: str) -> int:
    return len(_LINE_ENDS.findall(text_before)) + 1


def _read_delimited(path: Path, separator: str) -> Table:
    header, records = read_delimited(read_text(path), separator)
    columns = _unique(header.cells, "; the first line of the file is read as the header")
    rows = [dict(zip(columns, record.cells, strict=True)) for record in records]
    return Table(
        "", None, columns, rows, lines=[record.line for record in records], has_header=True
    )


def _unique(names: Iterable[str], remark: str = "") -> tuple[str, ...]:
    """Return the names of columns.

    Raises:
        FormatError: Two are the same.
    """
    columns = tuple(names)
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise FormatError(
            f"two columns have the same name, {twice!r}",
            hint=f"give each column a name of its own{remark}",
        )
    return columns


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without their ends; a line ends where files end lines, not at other breaks of Unicode."""
    lines = _LINE_ENDS.split(text)
    return lines if lines[-1] else lines[:-1]


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
    """Refuse rows inside of an object.

    Raises:
        FormatError: The document is such, or no object at all.
    """
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
    """Return a JSON value in which no key stands twice.

    Args:
        text: The JSON.
        line: The line that it is, where it is one.

    Raises:
        FormatError: The text is something else.
    """
    hint = "repair it: a .json file is a list of objects, a .jsonl file has one object a line"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}"
        raise FormatError(
            f"the JSON is damaged: {error.msg}, {place}", hint=hint, line=line or error.lineno
        ) from error
    except RecursionError:
        raise FormatError("the JSON is nested too deep", hint=hint, line=line) from None
    except ValueError as error:
        raise FormatError(
            f"the JSON is damaged: {first_line(error)}", hint=hint, line=line
        ) from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _unique([name for name, _value in pairs])
    return found


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
            _refuse_other_content(file.read(64), path.suffix)
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
