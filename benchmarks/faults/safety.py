"""Be nobody in particular: a campaign of faults that runs as root may hit what belongs to the system."""

import os
import sys
from pathlib import Path

_NOBODY = 65534


def become_ordinary(folder: Path, *, as_root: bool) -> bool:
    """Give up root for good, if this is root; ``folder`` then belongs to the ordinary user.

    Every trial is also held inside its folder by an audit hook (:mod:`benchmarks.faults.watch`), whoever it runs as.

    Args:
        folder: The campaign's own.
        as_root: Go on as root where an ordinary user couldn't read this Python.

    Returns:
        Whether this still is root.
    """
    if os.getuid() != 0:
        return False
    if _could_read():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        return False
    if as_root:
        return True
    sys.exit(
        "error: this is root, and an ordinary user can't read this Python or this project\n"
        f"  in:   {sys.executable}\n"
        "  try:  run it as an ordinary user; --as-root goes on all the same"
    )


def _could_read() -> bool:
    """Try, in a fork, whether an ordinary user can read Python's library, torch and this project."""
    import torch

    needed = [os.__file__, torch.__file__, __file__, sys.executable]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            for name in needed:
                with Path(name).open("rb") as file:
                    file.read(1)
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
