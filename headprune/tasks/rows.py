"""Rows by the name of their data (files, the hub, the demo), and which of them choose or report.

They are drawn by content and seed, never by position; and none is used for both.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from headprune import demo
from headprune.errors import DataError, did_you_mean, first_line
from headprune.runtime.local import noted_hash
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
    check_source(source, split=split)
    if source.startswith(demo.PREFIX):
        split = split or "train"
        return replace(_read_demo(demo.locate_data(source, split)), split=split)
    if path.suffix.lower() in FORMATS and path.is_file():
        return FORMATS[path.suffix.lower()](path)
    name, _, config = source.partition(":")
    return _load(source, name, config, split or "train")


def check_source(source: str, *, split: str | None = None) -> None:
    """Refuse, with a DataError, what can't be read, without reading it."""
    path = Path(source)
    if source.startswith(demo.PREFIX):
        return
    if path.suffix.lower() in FORMATS and path.is_file():
        if not os.access(path, os.R_OK):
            raise _error(source, "the data can't be read: no permission", "change its permissions")
        if split is not None:
            raise _error(
                source,
                f"{source} is a file, and a file has no split {split!r}: all of it is read",
                hint="name the file of that split with `data` or `eval_data`, and leave the split out",
            )
        return
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


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to be judged: a text, a pair of texts, or a window of tokens.

    ``target`` is a class index, a similarity from 0 to 1, or None. The first ``given`` tokens of a window aren't predicted.
    ``where`` says where it came from, for messages.
    """

    texts: tuple[str, ...] = ()
    target: float | int | None = None
    tokens: tuple[int, ...] = ()
    given: int = 1
    where: str = field(default="`data`", compare=False)

    @property
    def digest(self) -> str:
        """A hash of the content, the same wherever the row stands."""
        content = repr((self.texts, self.target, self.tokens))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def input_digest(self) -> str:
        """A hash of what the model sees, whatever the label says."""
        content = repr((self.texts, self.tokens))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw(examples: Sequence[Example], count: int | None, *, seed: int) -> tuple[Example, ...]:
    """Return ``count`` of the examples, chosen by the seed and their content: the order of the rows doesn't matter."""
    if count is None:
        return tuple(examples)
    return tuple(_shuffled(examples, seed)[:count])


def hold_out(
    examples: Sequence[Example], *, count: int, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split into rows that choose (``count`` of them, at most half) and rows that report."""
    shuffled = _shuffled(examples, seed)
    return set_apart(shuffled, min(count, len(shuffled) // 2))


def set_apart(
    examples: Sequence[Example], count: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the first ``count`` examples, and the other examples whose inputs aren't among these."""
    first = tuple(examples[:count])
    return first, without_inputs(examples[count:], [example.input_digest for example in first])


def without_inputs(examples: Iterable[Example], digests: Iterable[str]) -> tuple[Example, ...]:
    """Return the examples whose inputs have none of these digests."""
    taken = set(digests)
    return tuple(example for example in examples if example.input_digest not in taken)


def with_targets(examples: Iterable[Example], *, column: str) -> tuple[Example, ...]:
    """Return the examples that have a target.

    Raises:
        DataError: None has one.
    """
    labelled = tuple(example for example in examples if example.target is not None)
    if not labelled:
        raise DataError(
            "this split has no labels: every row holds -1, - or nothing",
            where=f"`data`, column {column!r}",
            hint="use a split with labels; `objective=distill` scores without any",
        )
    return labelled


def noted_rows(examples: Iterable[Example], *, earlier: Iterable[str] = ()) -> tuple[str, ...]:
    """Return how artefacts note the inputs of examples, in addition to inputs noted earlier: by keyed hashes."""
    return tuple(sorted({*earlier, *(noted_hash(example.input_digest) for example in examples)}))


def without_noted(examples: Iterable[Example], noted: Iterable[str]) -> tuple[Example, ...]:
    """Return the examples whose inputs were not noted on this machine."""
    taken = set(noted)
    if not taken:
        return tuple(examples)
    return tuple(example for example in examples if noted_hash(example.input_digest) not in taken)


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a hash of the examples' content that doesn't depend on their order."""
    digests = sorted(example.digest for example in examples)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    return sorted(
        examples,
        key=lambda example: hashlib.sha256(f"{seed}:{example.digest}".encode()).digest(),
    )


def without_rows_of(table: Table, other: Table, *, columns: Sequence[str]) -> tuple[Table, int]:
    """Return the table without the rows whose texts stand in ``other`` too, whatever their labels; and how many there were."""
    taken = {_texts(row, columns) for row in other.rows}
    kept = [i for i, row in enumerate(table.rows) if _texts(row, columns) not in taken]
    lines = [table.lines[index] for index in kept] if table.lines else ()
    left = replace(table, rows=[table.rows[index] for index in kept], lines=lines)
    return left, len(table.rows) - len(kept)


def prose_without_rows_of(table: Table, other: Table, *, column: str) -> tuple[Table, int]:
    """Return the rows of one text, with rows that are in ``other`` too emptied; and how many were.

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
        is_short = len(text.split()) < 8 and len(text) < 48
        is_heading = is_short and (text in often or "" in beside)
        leaks = text in taken and not is_heading
        count += leaks
        rows.append({**row, column: ""} if leaks else row)
    return replace(table, rows=rows), count


def _texts(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    cells = (row[name] for name in columns)
    return tuple(cell if isinstance(cell, str) else repr(cell) for cell in cells)
