"""Let a fresh process load a directory, and hear what became of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headprune.errors import UnprovenError, first_line, says_out_of_memory
from headprune.models import fresh_process
from headprune.models.load import complaints

_SECONDS = 600


def load_afresh(
    job: Mapping[str, Any],
    inputs: Mapping[str, Tensor] | None = None,
    *,
    ids: Mapping[str, Sequence[int]],
) -> tuple[list[str], Tensor | None]:
    """Load a directory in a fresh process, without headprune.

    ``job`` is what :mod:`~headprune.models.fresh_process` is to do; without ``inputs`` it only loads. ``ids`` are texts' tokens.

    Returns:
        What loading complained of, or why it failed; and the output, if there is one.

    Raises:
        UnprovenError: The process ended for want of memory or time, or what it found can't be read: that says nothing about the
            directory.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        files = {name: str(home / name) for name in ("inputs", "outputs", "offload")}
        if inputs is not None:
            moved = {name: value.cpu().contiguous() for name, value in inputs.items()}
            save_file(moved, files["inputs"])
        order = {**job, **files, "texts": list(ids)}
        (home / "job.json").write_text(json.dumps(order), encoding="utf-8")
        child = _child(home)
        if child.returncode != 0:
            return [_failure(child)], None
        lines_printed = child.stdout.strip().splitlines()
        if not lines_printed:
            raise _unproven("the process ended and didn't say what it found")
        report: dict[str, Any] = json.loads(lines_printed[-1])
        lines = [*sorted(complaints(report["complaints"])), *_split_otherwise(report, ids)]
        if inputs is None:
            return lines, None
        try:
            return lines, load_file(files["outputs"])["output"]
        except (OSError, SafetensorError, KeyError) as error:
            raise _unproven(f"its output can't be read: {first_line(error)}") from error


def _split_otherwise(report: Mapping[str, Any], ids: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a sentence about the first text that the reloaded tokenizer splits otherwise; empty where there is none."""
    pairs = zip(ids, ids.values(), report["token_ids"], strict=True)
    other = [text for text, before, after in pairs if list(before) != after]
    return [f"the tokenizer splits {text!r} another way" for text in other[:1]]


def _failure(child: "subprocess.CompletedProcess[str]") -> str:
    """Return why loading failed."""
    lines = child.stderr.strip().splitlines() or ["it ended without a word"]
    if memory := [line for line in lines if says_out_of_memory(line)]:
        raise _unproven(f"memory ran out: {memory[-1].strip()[:200]}")
    if child.returncode == -signal.SIGKILL:
        raise _unproven("the process was killed, as is done where memory runs out")
    crash = f" (signal {-child.returncode})" if child.returncode < 0 else ""
    return f"loading failed{crash}: {lines[-1]}"


def _child(folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        return subprocess.run(
            [sys.executable, "-P", str(fresh_process.__file__), str(folder / "job.json")],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _unproven(f"it took more than {_SECONDS} s") from error


def _unproven(why: str) -> UnprovenError:
    return UnprovenError(
        f"the saved model could not be loaded again to prove it: {why}",
        where="a fresh process",
        hint="run it again with more free memory, or on another device",
    )
