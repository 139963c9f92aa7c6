"""What becomes of a write that fails inside the libraries that write models, or that would write what nothing loads."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from headprune.errors import CheckpointError, first_line, is_out_of_memory

# In the words of both libraries: "I/O error: File too large (os error 27)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(directory: Path, what: str) -> Iterator[None]:
    """Name a write that failed inside a library: safetensors' own exception, and the bare ones of tokenizers, are no OSError.

    Raises:
        OSError: The system refused; whoever knows the target names it.
        CheckpointError: Anything else: settings that contradict each other, packed weights.
    """
    try:
        yield
    except Exception as error:
        refused = _OS_ERROR.search(str(error))
        is_known = type(error) is Exception or isinstance(error, SafetensorError)
        if refused is not None and not isinstance(error, OSError):
            raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error
        if not is_known and not _is_refusal(error):
            raise
        if is_known:
            raise CheckpointError(
                f"{what} can't be written: {first_line(error)}",
                where=str(directory),
                hint="free some space, or choose a place on another disk; nothing was left half-written",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        about = next((line for line in lines if line.startswith("- ")), "".join(lines[:1]))
        raise CheckpointError(
            f"transformers can't save {what} as it is: {about.removeprefix('- ')[:300]}",
            where="generation_config" if "GenerationConfig" in str(error) else str(directory),
            hint="change what it names, and save again; nothing was left half-written",
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether a library says of what it was given that it can't be written."""
    return isinstance(error, (ValueError, RuntimeError)) and not is_out_of_memory(error)
