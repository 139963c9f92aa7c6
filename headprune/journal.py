"""Results that outlive the run: what is done of a long pass over the data lies on disk, one small file a batch.

A file is there whole or not at all, and holds the very bits that were computed: a run that was killed and started again ends with
the same bytes as one that wasn't.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from headprune.atomic import staged_file

_PARTIAL = "partial"


@dataclass(frozen=True)
class Journal:
    """Tensors by name, in a directory of their own."""

    directory: Path

    def get(self, name: str) -> Tensor | None:
        """Return what was kept under a name; None where nothing was, or where it can't be read."""
        path = self.directory / f"{name}.safetensors"
        try:
            return load(path.read_bytes())["result"]
        except (OSError, KeyError, SafetensorError):
            return None

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor, atomically.

        Raises:
            CheckpointError: The disk is full, or the directory can't be written.
        """
        with staged_file(self.directory / f"{name}.safetensors") as temporary:
            temporary.write_bytes(save({"result": tensor.contiguous().cpu()}))

    def within(self, name: str) -> "Journal":
        """Return a part of this journal, whose names are its own."""
        return Journal(self.directory / name)

    def count(self) -> int:
        """Return how many results are kept, those of parts too."""
        return len(list(self.directory.rglob("*.safetensors")))

    def drop(self) -> None:
        """Remove everything: the whole is written elsewhere."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()


def open_journal(folder: Path, *, facts: Mapping[str, Any]) -> Journal:
    """Return the journal in ``folder`` of work that is defined by ``facts``: other facts, another journal."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return Journal(folder / _PARTIAL / hashlib.sha256(text.encode()).hexdigest()[:16])
