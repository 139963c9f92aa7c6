"""Results that outlive the run: what is done of a long pass over the data lies on disk, one small file a batch.

A file is there whole or not at all, and holds the very bits that were computed, with a checksum: a run that was killed and
started again ends with the same bytes as one that wasn't, and what the disk has damaged meanwhile is computed again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from headprune.runtime.files import staged_file

_PARTIAL = "partial"
# A safetensors file with the SHA-256 of its bytes behind it: a bit that flips in the numbers breaks no format.
_SUFFIX = ".safetensors"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Journal:
    """Tensors by name, in a directory of their own."""

    directory: Path

    def get(self, name: str, *, notify: Callable[[str], None] | None = None) -> Tensor | None:
        """Return what was kept under a name; None where nothing was, or where it is damaged, which is said."""
        path = self.directory / f"{name}{_SUFFIX}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            content, reason = b"", error.strerror or str(error)
        else:
            reason = "its checksum is wrong"
        written, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if digest and hashlib.sha256(written).digest() == digest:
            return load(written)["result"]
        if notify is not None:
            notify(f"careful: {path} is damaged ({reason}); what it held is computed again")
        return None

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor with a checksum of it, atomically.

        Raises:
            CheckpointError: The disk is full, or the directory can't be written.
        """
        content = save({"result": tensor.contiguous().cpu()})
        with staged_file(self.directory / f"{name}{_SUFFIX}") as temporary:
            temporary.write_bytes(content + hashlib.sha256(content).digest())

    def within(self, name: str) -> "Journal":
        """Return a part of this journal, whose names are its own."""
        return Journal(self.directory / name)

    def count(self) -> int:
        """Return how many results are kept, those of parts too."""
        return len(list(self.directory.rglob(f"*{_SUFFIX}")))

    def drop(self) -> None:
        """Remove everything: the whole is written elsewhere."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()


def open_journal(folder: Path, *, facts: Mapping[str, Any]) -> Journal:
    """Return the journal in ``folder`` of work that is defined by ``facts``: other facts, another journal."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return Journal(folder / _PARTIAL / hashlib.sha256(text.encode()).hexdigest()[:16])
