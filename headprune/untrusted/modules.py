"""``modules.json`` of sentence-transformers: what a text goes through, by name. Nothing that it names is ever imported."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from headprune.errors import ModelError
from headprune.untrusted.documents import read_json_list

MODULES = "modules.json"
_MOST_BYTES = 1_000_000
_MOST_MODULES = 32
_TYPE = re.compile(r"sentence_transformers\.(?:\w+\.)*(\w+)", re.ASCII)
_FOLDER = re.compile(r"(?:\w[\w.-]*)?", re.ASCII)
_NUMBERED = re.compile(r"\d+_\w+", re.ASCII)
_AGAIN = "fetch the model again"


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
    items = read_json_list(path, error=ModelError, hint=_AGAIN, most_bytes=_MOST_BYTES)
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
