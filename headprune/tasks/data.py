"""Rows from local files, the hub or the demo packages; which columns mean what; which rows choose and which report."""

import errno
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headprune import demo
from headprune.errors import DataError, did_you_mean

_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
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
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
# Some rows end in two more fields, where the sentences come from.
_STSB_COLUMNS = [
    "genre",
    "file",
    "year",
    "id",
    "score",
    "sentence1",
    "sentence2",
    "source1",
    "source2",
]


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
    with _reading(source):
        table, split = _read(source, split)
        rows = list(table)  # here texts are decoded
    if not rows:
        raise DataError("the data has no rows", where=f"--data {source}", hint="check the file")
    names = {
        column: tuple(feature.names)
        for column, feature in table.features.items()
        if getattr(feature, "names", None)
    }
    return Table(source, split, tuple(table.column_names), rows, names)


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Name data whose files may not be read, or whose texts aren't UTF-8.

    Raises:
        DataError: They are such.
    """
    try:
        yield
    except UnicodeError as error:
        raise DataError(
            f"the data is not UTF-8: {error}",
            where=f"--data {source}",
            hint="convert it: iconv -f LATIN1 -t UTF-8 FILE",
        ) from error
    except OSError as error:
        raise DataError(
            f"the data can't be read: {error.strerror or error}",
            where=f"--data {source}",
            hint="check the path and its permissions",
        ) from error


def _read(source: str, split: str | None) -> tuple[Any, str | None]:
    """Return the data set that is named, and its split."""
    path = Path(source)
    if source.startswith(demo.PREFIX):
        split = split or "train"
        table = _load(
            "csv",
            source,
            data_files=str(demo.locate_data(source, split)),
            sep="\t",
            quoting=3,
            keep_default_na=False,
            na_values=[""],
            column_names=_STSB_COLUMNS,
        )
    elif path.suffix.lower() in _BUILDERS:
        table, split = _read_file(path), None
    elif path.exists():
        raise DataError(
            f"{path.name} has a format that isn't known",
            where=f"--data {source}",
            hint=f"give a file that ends in {', '.join(_BUILDERS)}",
        )
    else:
        name, _, config = source.partition(":")
        split = split or "train"
        table = _load(name, source, *([config] if config else []), split=split)
    return table, split


def _read_file(path: Path) -> Any:
    if not path.is_file():
        folder = path.parent
        beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise DataError(
            f"{path} doesn't exist",
            where="--data",
            hint=did_you_mean(path.name, sorted(beside)[:8]) if beside else "check the path",
        )
    builder = _BUILDERS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if builder == "csv":
        # "None", "NA" and "null" are words; only an empty cell is missing.
        options = {"keep_default_na": False, "na_values": [""]}
        options["sep"] = "\t" if path.suffix.lower() == ".tsv" else ","
    return _load(builder, str(path), data_files=str(path), **options)


def _load(builder: str, source: str, *args: str, split: str = "train", **options: Any) -> Any:
    import datasets

    # A file is read by Dataset.from_...: load_dataset would tell a server on the internet that it did.
    readers = {
        "csv": datasets.Dataset.from_csv,
        "json": datasets.Dataset.from_json,
        "parquet": datasets.Dataset.from_parquet,
        "text": datasets.Dataset.from_text,
    }
    try:
        if "data_files" in options:
            return _from_file(readers[builder], options.pop("data_files"), options)
        return datasets.load_dataset(builder, *args, split=split, **options)
    except Exception as error:
        # The builders raise whatever their parsers raise (pandas, pyarrow, UnicodeDecodeError, hub errors).
        cause = _first_cause(error)
        local = builder in readers
        raise DataError(
            f"the data can't be read: {str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__}",
            where=f"--data {source}" + ("" if local else f" --split {split}"),
            hint="check that the content fits the file's ending"
            if local
            else "check the name (HUB_ID[:CONFIG]), the split and the network; a local file needs one of the endings "
            + ", ".join(_BUILDERS),
        ) from error


def _from_file(reader: Callable[..., Any], file: str, options: Mapping[str, Any]) -> Any:
    """Read a file; where the library's cache can't be written, with a cache of our own that is gone afterwards."""
    try:
        return reader(file, **options)
    except Exception as error:
        cause = _first_cause(error)
        of_the_cache = isinstance(cause, OSError) and cause.errno in _UNWRITABLE
        if not of_the_cache or str(getattr(cause, "filename", None)) == file:
            raise
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return reader(file, cache_dir=folder, keep_in_memory=True, **options)


def _first_cause(error: BaseException) -> BaseException:
    """Return the end of a chain of causes, where a parser's own words are."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
