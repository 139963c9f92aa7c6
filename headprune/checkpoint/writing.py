"""What becomes of a write that fails inside the libraries that write models."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from headprune.errors import CheckpointError, first_line

# In the words of both libraries: "I/O error: File too large (os error 27)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(directory: Path, what: str) -> Iterator[None]:
    """Name a write that failed inside a library: safetensors' own exception, and the bare ones of tokenizers, are no OSError.

    Raises:
        OSError: The system refused; whoever knows the target names it.
        CheckpointError: Anything else.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, SafetensorError):
            raise
        refused = _OS_ERROR.search(str(error))
        if refused is not None:
            raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error
        raise CheckpointError(
            f"{what} can't be written: {first_line(error)}",
            where=str(directory),
            hint="free some space, or choose a place on another disk; nothing was left half-written",
        ) from error
