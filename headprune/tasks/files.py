"""Data sets by name: local files by their ending, the hub, the demo packages; and what is said where they can't be read."""

import glob
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headprune import demo
from headprune.errors import DataError, did_you_mean, first_line

_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
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


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Name data whose files may not be read, or whose texts aren't UTF-8.

    Raises:
        DataError: They are such.
    """
    try:
        yield
    except UnicodeError as error:
        raise DataError(
            f"the data is not UTF-8: {first_line(error)}",
            where=f"--data {source}",
            hint="convert it: iconv -f LATIN1 -t UTF-8 FILE",
        ) from error
    except OSError as error:
        raise DataError(
            f"the data can't be read: {error.strerror or first_line(error)}",
            where=f"--data {source}",
            hint="check the path and its permissions",
        ) from error


def open_data(source: str, split: str | None) -> tuple[Any, str | None]:
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
            f"the data can't be read: {first_line(cause)}",
            where=f"--data {source}" + ("" if local else f" --split {split}"),
            hint="check that the content fits the file's ending"
            if local
            else "check the name (HUB_ID[:CONFIG]), the split and the network; a local file needs one of the endings "
            + ", ".join(_BUILDERS),
        ) from error


def _from_file(reader: Callable[..., Any], file: str, options: Mapping[str, Any]) -> Any:
    """Read a file, whose name is no pattern.

    Where the library's cache can't be written, it has one of our own, which is gone afterwards.
    """
    try:
        return reader(glob.escape(file), **options)
    except Exception as error:
        cause = _first_cause(error)
        if not isinstance(cause, OSError) or str(cause.filename) in ("None", file):
            raise
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return reader(glob.escape(file), cache_dir=folder, keep_in_memory=True, **options)


def _first_cause(error: BaseException) -> BaseException:
    """Return the end of a chain of causes, where a parser's own words are."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
