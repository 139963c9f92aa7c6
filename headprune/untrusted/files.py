"""What lies in a model's directory: no pipes or devices among it, and no links to files elsewhere."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from headprune.errors import ModelError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
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


def kind_if_special(path: Path) -> str | None:
    """Return what a path is if opening it could hang or do something; None for files, directories and what isn't there.

    Raises:
        OSError: It can't be told.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    return next((name for test, name in _KINDS if test(mode)), None)


def kind_by_content(raw: bytes) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do with it; None where that isn't known."""
    return next(((what, hint) for start, what, hint in _STARTS if raw.startswith(start)), None)


def lies_within(directory: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in a directory, or in the cache of the hub that the directory is a part of."""
    real = path.resolve()
    return any(real.is_relative_to(home) for home in _homes(directory))


def _homes(directory: Path) -> Iterator[Path]:
    real = directory.resolve()
    yield real
    # models--NAME/snapshots/COMMIT/... holds links into models--NAME/blobs.
    for parent in real.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            yield parent.parent


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
