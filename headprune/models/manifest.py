"""``manifest.json``: size and sha256 of what was saved, so that damage is noticed, and so that what isn't ours is left alone."""

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from headprune.artefact import Artefact, read_artefact
from headprune.errors import CheckpointError
from headprune.runtime.files import refuse_unusable_target, staged_directory
from headprune.runtime.targets import everything_in, naming
from headprune.untrusted.directories import lies_within

MANIFEST = "manifest.json"
"""Lies in every directory that we saved; only such a one is ever replaced."""

# May be edited freely; whatever is loaded may not.
_FREE = ("README.md",)
# May be absent, in a copy that has only what a load needs; but not damaged.
_RECORDS = (
    *("scores.json", "roles.json", "plan.json", "results.json", "proofs.json"),
    "headprune.yaml",
)
_NEEDED = (".safetensors", ".json", ".py", ".txt", ".model", ".jinja", ".yaml")
# What a load reads where it finds it, whether or not we wrote it: weights and adapters, configs, tokenizers, code.
_LOADED = (
    *("*.safetensors", "*.index.json", "pytorch_model*", "adapter_*", "*.py"),
    *(
        "*config.json",
        "config_*.json",
        "modules.json",
        "tokenizer*.json",
        "vocab*.json",
        "vocab*.txt",
    ),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja"),
    "chat_template.json",
)
# Folders in which a load looks: those of sentence-transformers, such as 1_Pooling, and of chat templates.
_LOADED_FOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")
# As to_json begins: how a manifest of ours can be told that was cut short.
_START = b'{\n  "files": {'


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Manifest(Artefact):
    """The files of a directory, by their path in it."""

    written_by = "prune"

    files: dict[str, _File]

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, _File]) -> dict[str, _File]:
        for name in files:
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is no file of this directory")
        return files


def write_manifest(directory: Path) -> None:
    """Write the manifest of ``directory``: it names every file."""
    files = {
        name: _File(sha256=_sha256(directory / name), size=(directory / name).stat().st_size)
        for name in _names(directory)
    }
    (directory / MANIFEST).write_text(Manifest(files=files).to_json(), encoding="utf-8")


def check_manifest(directory: Path) -> None:
    """Compare a directory with its manifest; one that has none, or another program's, passes.

    Raises:
        CheckpointError: A file is missing, isn't what was saved, or was added and would be loaded.
    """
    path = directory / MANIFEST
    if not path.is_file() or not claims_to_be_ours(path):
        return
    files = read_artefact(Manifest, path).files
    for name, expected in files.items():
        _check_file(directory, name, expected)
    added = [name for name in _names(directory) if name not in files and _is_loaded(name, files)]
    if added:
        raise CheckpointError(
            f"{_some(added)}: added after the model was saved, and a load would read it",
            where=str(directory),
            hint=f"move it elsewhere; if you added it on purpose, remove {MANIFEST}",
        )


def refuse_strangers(directory: Path) -> None:
    """Refuse to replace a directory unless a manifest of ours accounts for all that is in it.

    Raises:
        CheckpointError: It has none, a file that the manifest names isn't there, or there is something that it doesn't name.
    """
    path = directory / MANIFEST
    is_ours = _is_plain(path) and claims_to_be_ours(path)
    files = read_artefact(Manifest, path).files if is_ours else {}
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    known = {MANIFEST, *files, *folders} if is_ours else set()
    names = [entry.relative_to(directory).as_posix() for entry in everything_in(directory)]
    absent = {name for name in files if not _is_plain(directory / name)} - {*_RECORDS, *_FREE}
    if absent:
        what = f"{directory} isn't as headprune left it, and is not replaced: {_some(sorted(absent))} missing"
    elif strangers := [name for name in names if name not in known]:
        what = (
            f"{directory} holds something that headprune did not write, and is not replaced: "
            f"{_some(strangers)}"
        )
    else:
        return
    raise CheckpointError(
        what,
        where=str(path) if absent else "output directory",
        hint="choose another `out`, or remove or move it yourself (`overwrite=True` replaces only what headprune wrote)",
    )


def _check_file(directory: Path, name: str, expected: _File) -> None:
    file = directory / name
    if not file.is_file():
        if name in (*_RECORDS, *_FREE) or file.suffix not in _NEEDED:
            return
        raise CheckpointError(
            f"{name} is missing", where=str(directory), hint="fetch or make the directory again"
        )
    if not lies_within(directory, file):
        raise CheckpointError(
            f"{name} is a link that leads out of the directory",
            where=str(file),
            hint="fetch or make the directory again",
        )
    if name in _FREE:
        return
    if file.stat().st_size != expected.size or _sha256(file) != expected.sha256:
        raise CheckpointError(
            f"{name} is not the file that was saved (its size or sha256 differs from {MANIFEST})",
            where=str(file),
            hint=f"fetch or make the directory again; if you changed it on purpose, remove {MANIFEST}",
        )


def claims_to_be_ours(path: Path) -> bool:
    """Whether a ``manifest.json`` is one of ours, perhaps damaged: other programs write files of that name, of other forms."""
    raw = path.read_bytes()
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return b'"sha256"' in raw or raw.startswith(_START[: len(raw)])
    if not isinstance(document, dict) or len(document.keys() - {"sha256"}) != 2:
        return False
    maps = [value for value in document.values() if isinstance(value, dict)]
    of_files = any(all(isinstance(value, dict) for value in files.values()) for files in maps)
    return of_files and not document.keys().isdisjoint({"files", "format"})


def _is_loaded(name: str, files: Iterable[str]) -> bool:
    """Whether a load would read a file, should it be there."""
    path = PurePosixPath(name)
    ours = {str(PurePosixPath(known).parent) for known in files}
    folder = str(path.parent)
    is_looked_into = folder in {".", *ours} or _LOADED_FOLDERS.fullmatch(folder) is not None
    return is_looked_into and any(fnmatchcase(path.name, pattern) for pattern in _LOADED)


def _names(directory: Path) -> list[str]:
    """Return the files of a directory and its folders, but for its manifest."""
    paths = [path for path in everything_in(directory) if path.is_file()]
    names = {path.relative_to(directory).as_posix() for path in paths}
    return sorted(names - {MANIFEST})


def _is_plain(path: Path) -> bool:
    """Whether a path is a regular file, and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _some(names: list[str]) -> str:
    """Return a few names, and how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unusable_output(
    out: Path,
    *,
    overwrite: bool,
    needed_bytes: int = 0,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Check, before any work starts, that a directory can be written later, and holds nothing that headprune didn't write.

    ``notify`` tells the user that what a run that was killed had moved aside is back.

    Raises:
        CheckpointError: See :func:`headprune.runtime.files.refuse_unusable_target` and :func:`refuse_strangers`.
    """
    may_replace = refuse_strangers if overwrite else None
    was_put_back = refuse_unusable_target(out, may_replace=may_replace, needed_bytes=needed_bytes)
    if was_put_back and notify is not None:
        notify(f"{out} is back: a run that was killed while it replaced it had moved it aside")


def refuse_source(out: Path, source: Path) -> None:
    """Refuse an output directory that is, or contains, the model that is read, however the two paths are written.

    Raises:
        CheckpointError: It does.
    """
    with naming(out):
        target, home = out.resolve(), source.resolve()
        holders = (home, *home.parents)
        is_source = target in holders or (
            target.exists() and any(target.samefile(holder) for holder in holders)
        )
    if is_source:
        raise CheckpointError(
            f"the model that is read lies in {out}, which would be replaced",
            where=f"output directory {out}",
            hint="choose another directory",
        )


def output_directory(out: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Yield an empty directory that becomes ``out`` when the block ends well; only what headprune wrote is replaced.

    Raises:
        CheckpointError: See :func:`headprune.runtime.files.staged_directory` and :func:`refuse_strangers`.
    """
    may_replace = refuse_strangers if overwrite else None
    return staged_directory(out, may_replace=may_replace)
