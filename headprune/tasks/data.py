"""Rows by the name of their data: local files, the hub, the demo packages."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from headprune import demo
from headprune.errors import DataError, did_you_mean, first_line
from headprune.runtime.targets import kind_if_special
from headprune.tasks.delimited import FormatError, lines_of, read_text
from headprune.tasks.tables import FORMATS, Table

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What save_to_disk of the datasets library writes beside rows.
_NOTES_OF_DATASETS = ("dataset_dict.json", "state.json", "dataset_info.json")
# Some rows end in two more fields, where the sentences come from.
_STSB_COLUMNS = ("genre", "file", "year", "id", "score", "sentence1", "sentence2")


def read_table(source: str, *, split: str | None = None) -> Table:
    """Read ``FILE``, ``HUB_ID[:CONFIG]`` or ``demo:NAME``.

    Args:
        source: What to read. The ending tells the format of a file: csv, tsv, json, jsonl, parquet, arrow, txt.
        split: The split of a hub or demo data set (``train`` where none is given). A local file has none to be named.

    Raises:
        DataError: The file is missing, empty, of an unknown format or malformed; or the data set can't be had.
    """
    try:
        table = _open(source, split)
    except FormatError as error:
        raise DataError(str(error), where=f"`data={source}`", hint=error.hint) from error
    except OSError as error:
        raise _error(
            source,
            f"the data can't be read: {error.strerror or first_line(error)}",
            hint="check the path and its permissions",
        ) from error
    if not table.rows:
        raise DataError("the data has no rows", where=f"`data={source}`", hint="check the file")
    return replace(table, name=source)


def _open(source: str, split: str | None) -> Table:
    path = Path(source)
    if source.startswith(demo.PREFIX):
        split = split or "train"
        return replace(_read_demo(demo.locate_data(source, split)), split=split)
    if path.suffix.lower() in FORMATS and path.is_file():
        if split is not None:
            raise _error(
                source,
                f"{source} is a file, and a file has no split {split!r}: all of it is read",
                hint="name the file of that split with `data` or `eval_data`, and leave the split out",
            )
        return FORMATS[path.suffix.lower()](path)
    if "://" in source:
        raise _error(
            source,
            f"{source} is an address, and data is read from files and data sets alone",
            hint="download it and name the file, or say HUB_ID[:CONFIG]",
        )
    name, _, config = source.partition(":")
    if path.suffix.lower() in FORMATS or path.exists() or Path(name).exists():
        raise _no_file(path if path.exists() else Path(name) if config else path, source)
    if not _HUB_ID.fullmatch(name):
        raise _error(
            source,
            f"there is no file {source!r}, and no data set on the hub is called so",
            hint=f"name one file that ends in {', '.join(FORMATS)}, or HUB_ID[:CONFIG]",
        )
    return _load(source, name, config, split or "train")


def _error(source: str, what: str, hint: str) -> DataError:
    return DataError(what, where=f"`data={source}`", hint=hint)


def _read_demo(path: Path) -> Table:
    """Read tabs without quotes and without a header."""
    lines = lines_of(read_text(path))
    rows = [dict(zip(_STSB_COLUMNS, line.split("\t"), strict=False)) for line in lines]
    return Table("", None, _STSB_COLUMNS, rows, lines=range(1, len(rows) + 1))


def _no_file(path: Path, source: str) -> DataError:
    """Return what is wrong with something that isn't a file of a known format."""
    where = f"`data={source}`"
    endings = ", ".join(FORMATS)
    if path.is_dir():
        inside = [entry for entry in path.iterdir() if entry.name not in _NOTES_OF_DATASETS]
        known = (entry for entry in inside if entry.suffix.lower() in FORMATS)
        names = sorted(str(entry) for entry in islice(known, 8))
        hint = f"name one file of it: {', '.join(names)}" if names else f"name one file ({endings})"
        if any((path / name).is_file() for name in _NOTES_OF_DATASETS):
            hint = f"write it as one file: datasets.load_from_disk({str(path)!r}).to_parquet(FILE), of one split"
        return DataError(f"{path} is a folder, not a file", where=where, hint=hint)
    special = kind_if_special(path)
    if special:
        return DataError(f"{path.name} is {special}, not a file", where=where, hint="name a file")
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, sorted(beside)[:8]) if beside else "check the path"
        return DataError(f"there is no file {path}", where=where, hint=f"name one file; {hint}")
    if path.suffix.lower() in FORMATS:
        return DataError(
            f"{path.name} is a file, which has no parts to be named after it",
            where=where,
            hint=f"say `data={path}`",
        )
    if path.suffix.lower() in _PACKED:
        return DataError(
            f"{path.name} is compressed",
            where=where,
            hint=f"unpack it: data is read from {endings}",
        )
    return DataError(
        f"{path.name} has a format that isn't known",
        where=where,
        hint=f"give a file that ends in {endings}",
    )


def _load(source: str, name: str, config: str, split: str) -> Table:
    """Load a data set of the hub; a name of a format, which the library takes for a reader of the working directory, is none."""
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if name in _PACKAGED_DATASETS_MODULES:
        raise _error(
            source,
            f"{name!r} is the name of a format, not a data set",
            hint=f"name one file that ends in {', '.join(FORMATS)}, or HUB_ID[:CONFIG]",
        )
    try:
        table = datasets.load_dataset(name, *([config] if config else []), split=split)
        rows: list[dict[str, Any]] = list(table)  # here texts are decoded
    except Exception as error:
        # The builders raise whatever their parsers raise (pandas, pyarrow, UnicodeDecodeError, hub errors).
        raise DataError(
            f"the data can't be read: {first_line(_first_cause(error))}",
            where=f"`data={source}` `split={split}`",
            hint="check the name (HUB_ID[:CONFIG]), the split and the network; a local file needs one of the endings "
            + ", ".join(FORMATS),
        ) from error
    names = {
        column: tuple(feature.names)
        for column, feature in table.features.items()
        if getattr(feature, "names", None)
    }
    return Table("", split, tuple(table.column_names), rows, names)


def _first_cause(error: BaseException) -> BaseException:
    """Return the end of a chain of causes, where a parser's own words are."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
