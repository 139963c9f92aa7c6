"""What lies in a model's directory: no pipes or devices, no links to files elsewhere, no modules of somebody's own.

``modules.json`` of sentence-transformers names what a text goes through. Nothing that it names is ever imported.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headprune.errors import ModelError
from headprune.runtime.targets import kind_if_special
from headprune.untrusted.documents import read_json, read_json_list

_AGAIN = "fetch the model again"
SETTINGS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "sentence_*config.json",
)
"""How a model generates, what reads its images or sounds, and how sentence-transformers runs it."""
MODULES = "modules.json"
_MOST_BYTES = 1_000_000
_MOST_MODULES = 32
_TYPE = re.compile(r"sentence_transformers\.(?:\w+\.)*(\w+)", re.ASCII)
_FOLDER = re.compile(r"(?:\w[\w.-]*)?", re.ASCII)
_NUMBERED = re.compile(r"\d+_\w+", re.ASCII)
# What files begin with whose names often end like those of others.
_STARTS = (
    (b"version https://git-lfs", "a pointer of git-lfs, which stands for a file", "git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip FILE"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as .csv"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet", "save the sheet as .csv"),
    (b"PAR1\x15", "a parquet file", "name it .parquet"),
    (b"ARROW1\0", "an arrow file", "name it .arrow"),
)
# Those of sentence-transformers, such as 1_Pooling, and of chat templates.
_READ_FOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")
_MOST_ENTRIES = 100_000


def kind_by_content(raw: bytes) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do with it; None where that isn't known."""
    return next(((what, hint) for start, what, hint in _STARTS if raw.startswith(start)), None)


def lies_within(directory: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in a directory, or in the hub's cache that the directory is a part of."""
    real = path.resolve()
    return any(real.is_relative_to(home) for home in _homes(directory))


def _homes(directory: Path) -> Iterator[Path]:
    real = directory.resolve()
    yield real
    # The hub's cache: models--NAME/snapshots/COMMIT/... holds links into models--NAME/blobs.
    for parent in real.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            yield parent.parent / "blobs"


def refuse_foreign_files(directory: Path) -> None:
    """Refuse a directory in which something that is read isn't a file of its own.

    Raises:
        ModelError: A pipe, device or socket lies there, a file that would be read is a link to somewhere else, or the directory
            can't be looked into.
    """
    try:
        for path in _entries(directory):
            _refuse_foreign(directory, path)
    except OSError as error:
        raise ModelError(
            f"{directory.name or directory} can't be looked into: {error.strerror or error}",
            where=str(error.filename or directory),
            hint="check the permissions",
        ) from error
    except RuntimeError as error:  # Python 3.11 and 3.12 say so of links in a circle
        raise ModelError(
            f"a link of the model leads nowhere: {error}", where=str(directory), hint="remove it"
        ) from error


def _entries(directory: Path) -> Iterator[Path]:
    folders = [directory]
    count = 0
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_ENTRIES:
                    raise ModelError(
                        f"{directory.name or directory} holds more than {_MOST_ENTRIES:,} files",
                        where=str(directory),
                        hint="name the directory that holds the model alone",
                    )
                path = Path(entry.path)
                yield path
                if folder is directory and _READ_FOLDERS.fullmatch(entry.name) and path.is_dir():
                    folders.append(path)


def _refuse_foreign(directory: Path, path: Path) -> None:
    special = kind_if_special(path)
    if special:
        raise ModelError(
            f"{path.name} is {special}, not a file of a model", where=str(path), hint="remove it"
        )
    # Tokenizers read files of any name: vocab, bpe.codes, ...
    is_read = not path.is_dir() or _READ_FOLDERS.fullmatch(path.name) is not None
    if is_read and path.is_symlink() and not lies_within(directory, path):
        raise ModelError(
            f"{path.name} is a link to something outside of the model's directory",
            where=str(path),
            hint="put the file itself there; nothing is read, or copied, through links that lead elsewhere",
        )


def refuse_damaged_settings(directory: Path) -> None:
    """Refuse damaged settings beside a model: they are copied when the work is done, which would be too late to say so.

    Raises:
        ModelError: A file is damaged, or can't be read.
    """
    for pattern in (*SETTINGS, "tokenizer_config.json", "config_sentence_transformers.json"):
        for path in sorted(directory.glob(pattern)):
            read_json(path, error=ModelError)


class ModuleEntry(NamedTuple):
    """One module: its class's name (``Pooling``) and the folder with its files, empty for the directory itself."""

    kind: str
    folder: str


def module_entries(directory: Path) -> tuple[ModuleEntry, ...] | None:
    """Return the modules of a directory in their order; None where it has no ``modules.json``.

    Raises:
        ModelError: The file is damaged, or names code that isn't sentence-transformers' own, or a folder elsewhere.
    """
    path = directory / MODULES
    if not path.is_file():
        return None
    return tuple(_entry(item, where=str(path)) for item in _items(path))


def transformer_folder(directory: Path) -> str:
    """Return the folder in which sentence-transformers keeps the transformer of a directory; empty: in the directory itself."""
    path = directory / MODULES
    if not path.is_file():
        return ""
    first = next(iter(_items(path)), {})
    kind, folder = str(first.get("type")).rpartition(".")[2], first.get("path")
    if kind != "Transformer" or not isinstance(folder, str) or not _NUMBERED.fullmatch(folder):
        return ""
    return folder if (directory / folder / "config.json").is_file() else ""


def _items(path: Path) -> list[dict[str, Any]]:
    items = read_json_list(path, hint=_AGAIN, most_bytes=_MOST_BYTES)
    if len(items) > _MOST_MODULES or not all(isinstance(item, dict) for item in items):
        raise ModelError(
            f"{MODULES} is no list of at most {_MOST_MODULES} modules", where=str(path), hint=_AGAIN
        )
    return items


def _entry(item: dict[str, Any], *, where: str) -> ModuleEntry:
    kind, folder = item.get("type"), item.get("path")
    named = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if named is None:
        raise ModelError(
            f"{MODULES} names {str(kind)[:100]!r}: code that isn't sentence-transformers' own, and isn't run",
            where=where,
            hint="take a model whose modules are all of sentence_transformers, or name the transformer's "
            "own directory without modules.json",
        )
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise ModelError(
            f"{MODULES} names {str(folder)[:100]!r}, which is no folder of its own directory",
            where=where,
            hint="fetch the model from somebody you trust",
        )
    return ModuleEntry(named[1], folder)
