"""Trainer's checkpoints, in a folder that says what they are of: only the very same training goes on from them."""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprune.artefact import dump_json
from headprune.errors import CheckpointError
from headprune.runtime.files import write_text
from headprune.runtime.targets import refuse_unwritable
from headprune.untrusted.documents import read_json

_FACTS = "heal.json"
_STATE = "trainer_state.json"
"""What Trainer writes last of a checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, and the one to go on from."""

    folder: Path
    last: Path | None

    def drop(self) -> None:
        """Remove the checkpoints: the healed model is saved elsewhere. What else lies there, or can't be removed, stays."""
        for path in filter(_is_checkpoint, _named_like_checkpoints(self.folder)):
            # First what says that it is whole: should we be stopped here, nobody goes on from the rest.
            with suppress(OSError):
                (path / _STATE).unlink()
            shutil.rmtree(path, ignore_errors=True)
        # What is left of ours stays ours, so that the next training may replace it.
        if not any(map(_is_checkpoint, _named_like_checkpoints(self.folder))):
            with suppress(OSError):
                (self.folder / _FACTS).unlink(missing_ok=True)
                self.folder.rmdir()  # unless something of the user's lies there


def open_checkpoints(folder: Path, *, facts: Mapping[str, Any], resume: bool) -> Checkpoints:
    """Return the checkpoints in ``folder`` of the training that is defined by ``facts``.

    Args:
        folder: Where they are, or will be.
        facts: The models, the rows and all settings.
        resume: Whether to go on from the last.

    Raises:
        CheckpointError: There is none to go on from, or it is of another training; or there are some and ``resume`` is off,
            or some that aren't ours.
    """
    where = f"`run_dir={folder}`"
    refuse_unwritable(folder / _FACTS, where=where)
    old = _read_facts(folder)
    _refuse_foreign_checkpoints(folder, is_ours=old.get("format") == 1, where=where)
    last, text = last_checkpoint(folder), dump_json({"format": 1, **facts})
    if not resume:
        if last is not None:
            raise CheckpointError(
                f"{folder} holds checkpoints of a training that was stopped",
                where=where,
                hint="`resume=True` goes on from there; or choose another `run_dir`, or remove it",
            )
        write_text(folder / _FACTS, text)
        return Checkpoints(folder, None)
    if last is None:
        raise CheckpointError(
            f"there is no checkpoint in {folder} to go on from",
            where="`resume=True`",
            hint="leave out `resume`, or name the folder with `run_dir`",
        )
    new = json.loads(text)
    different = [name for name in new if old.get(name) != new[name]]
    if different:
        name = different[0]
        raise CheckpointError(
            f"the checkpoints are of another training ({', '.join(different)}: {old.get(name)!r}, and now {new[name]!r})",
            where=f"{folder / _FACTS}",
            hint="give the settings that it was started with, or start anew with another `run_dir`",
        )
    return Checkpoints(folder, last)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that Trainer finished in a folder; transformers' own search takes half-written ones, too."""
    finished = [
        path
        for path in _named_like_checkpoints(folder)
        if _is_checkpoint(path) and _read(path / _STATE) is not None
    ]
    return max(finished, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _refuse_foreign_checkpoints(folder: Path, *, is_ours: bool, where: str) -> None:
    """Refuse a folder with what Trainer would take for its own checkpoints, remove or go on from, and isn't.

    Raises:
        CheckpointError: There is something.
    """
    foreign = [
        path for path in _named_like_checkpoints(folder) if not (is_ours and _is_checkpoint(path))
    ]
    if (folder / _FACTS).exists() and not is_ours:
        foreign.append(folder / _FACTS)
    if foreign:
        raise CheckpointError(
            f"{foreign[0].name} in {folder} isn't of a training by headprune",
            where=where,
            hint="choose another `run_dir`, or move it elsewhere: Trainer removes old checkpoints",
        )


def _named_like_checkpoints(folder: Path) -> list[Path]:
    """Return what Trainer would take for checkpoints by their names."""
    return sorted(folder.glob("*checkpoint-*")) if folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    named = re.fullmatch(r"checkpoint-\d+", path.name, re.ASCII)
    return named is not None and path.is_dir() and not path.is_symlink()


def _read_facts(folder: Path) -> dict[str, Any]:
    """Return what a folder says of itself; a folder that says nothing isn't ours, and nothing of it is loaded."""
    facts = _read(folder / _FACTS)
    return facts if isinstance(facts, dict) else {}


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError:
        return None
