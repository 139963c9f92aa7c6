"""What lies in a directory, all of it: a search by a pattern passes over folders that it may not read, and says nothing."""

import os
from pathlib import Path


def everything_in(directory: Path) -> list[Path]:
    """Return all that lies in a directory and its folders, in order; links are told, and not followed.

    Raises:
        OSError: A folder can't be read.
    """
    found = []
    for folder, folders, files in os.walk(directory, onerror=_raise):
        found += [Path(folder) / name for name in (*folders, *files)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
