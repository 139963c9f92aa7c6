"""``manifest.json``: size and sha256 of what was saved, so that damage is noticed."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from headprune.atomic import MANIFEST
from headprune.errors import CheckpointError
from headprune.heads import Artefact, read_artefact

# A README may be edited freely; whatever is loaded may not.
_SEALED = (".safetensors", ".json", ".py", ".txt", ".model", ".jinja", ".yaml")
# May be absent, in a copy that has only what a load needs; but not damaged.
_RECORDS = ("scores.json", "plan.json", "results.json", "proofs.json", "headprune.yaml")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Manifest(Artefact):
    """The files of a directory."""

    written_by = "prune"

    files: dict[str, _File]


def seal(directory: Path) -> None:
    """Write the manifest of ``directory``."""
    files = {
        str(path.relative_to(directory).as_posix()): _File(
            sha256=_sha256(path), size=path.stat().st_size
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path.suffix in _SEALED
    }
    (directory / MANIFEST).write_text(Manifest(files=files).to_json(), encoding="utf-8")


def check_manifest(directory: Path) -> None:
    """Compare a directory with its manifest; one that has none passes.

    Raises:
        CheckpointError: A file is missing, or isn't what was saved.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return
    for name, expected in read_artefact(Manifest, path).files.items():
        file = directory / name
        if not file.is_file() and name in _RECORDS:
            continue
        if not file.is_file():
            raise CheckpointError(
                f"{name} is missing", where=str(directory), hint="fetch or make the directory again"
            )
        if file.stat().st_size != expected.size or _sha256(file) != expected.sha256:
            raise CheckpointError(
                f"{name} is not the file that was saved (its size or sha256 differs from {MANIFEST})",
                where=str(file),
                hint=f"fetch or make the directory again; if you changed it on purpose, remove {MANIFEST}",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
