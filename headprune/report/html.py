"""Pages in one file: what a browser may run in them, and what they may replace."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from headprune.errors import CheckpointError
from headprune.runtime.files import staged_file
from headprune.runtime.targets import refuse_unwritable

_FIRST_BYTES = 400


def source_of_policy(text: str) -> str:
    """Return what a content security policy calls a script or style, so that the page runs that one alone."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def generator(command: str) -> str:
    """Return the element near the top of a page that says which command wrote it."""
    return f'<meta name="generator" content="headprune {command}">'


def refuse_unusable_page(path: Path, *, command: str, overwrite: bool) -> None:
    """Check, before any work, that a page can be written.

    Raises:
        CheckpointError: It can't; or something lies there that the command didn't write, or did, and ``overwrite`` is off.
    """
    refuse_unwritable(path, where=f"`out={path}`")
    if not path.exists():
        return
    if not overwrite:
        raise CheckpointError(
            f"{path} is there already",
            where=f"`out={path}`",
            hint="choose another name, or say `overwrite=True` to replace it",
        )
    _refuse_others(path, command)


def write_page(html: str, path: Path, *, command: str, overwrite: bool) -> None:
    """Write a page, all or nothing.

    Raises:
        CheckpointError: See :func:`refuse_unusable_page`; what was there is as it was.
    """
    may_replace = (lambda file: _refuse_others(file, command)) if overwrite else None
    with staged_file(path, may_replace=may_replace) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def _refuse_others(path: Path, command: str) -> None:
    with path.open("rb") as file:
        is_ours = generator(command).encode() in file.read(_FIRST_BYTES)
    if not is_ours:
        raise CheckpointError(
            f"{path} is no page of headprune {command}, and is not replaced",
            where=f"`out={path}`",
            hint="choose another name, or remove it yourself",
        )
