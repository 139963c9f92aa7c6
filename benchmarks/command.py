"""What the command lines of all benchmarks share: ``--quick``, and the files that they write. Imports nothing large."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def parser(name: str, about: str | None, *, quick: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--quick``.

    Args:
        name: Of the benchmark, as ``python -m benchmarks.NAME`` names it.
        about: What it measures.
        quick: What ``--quick`` runs.
    """
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    found.add_argument(
        "--quick",
        action="store_true",
        help=f"a smoke run: the same code on tiny inputs ({quick}). Its numbers mean nothing; it writes nothing into docs/",
    )
    return found


def add_files(found: argparse.ArgumentParser, *, page: str = "") -> None:
    """Let a parser know ``--json``, and ``--page`` where there is a page."""
    found.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    if page:
        found.add_argument("--page", type=Path, metavar="FILE", help=f"write the page, {page}")


def read(found: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a smoke run that would write into docs/ is refused."""
    asked = found.parse_args(words)
    for name in ("json", "page"):
        path = getattr(asked, name, None)
        if asked.quick and path and path.resolve().is_relative_to(DOCS):
            found.error(f"the numbers of --quick mean nothing: --{name} can't be in docs/")
    return asked


def write_json(path: Path, document: Any) -> None:
    """Write a document."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
