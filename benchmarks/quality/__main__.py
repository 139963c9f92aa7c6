"""How good pruned models are, beside the recipes of others. See docs/quality.md.

Every cut is kept as it is measured; the same command goes on from there.
"""

import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.quality.measure import Bench, Measured
from benchmarks.quality.recipes import CONTENDERS, UNTRAINED
from benchmarks.quality.report import page
from benchmarks.quality.subjects import SUBJECTS
from benchmarks.quality.tolerance import go_within
from headprune.inspection import inspect

_START = time.perf_counter()


class Quiet:
    """Says nothing while a recipe works."""

    def notify(self, text: str) -> None:
        """Say nothing."""

    def track(self, items: Sequence[Any], description: str) -> Iterable[Any]:
        """Show nothing."""
        del description
        return items


def main(words: Sequence[str] | None = None) -> int:
    """Measure what isn't measured yet, one cut after the other, and keep each as it is done."""
    asked = _read(words)
    if asked.cost:
        return _tell_cost(asked)
    if asked.max_drop is not None:
        return _tell_how_far(asked)
    if asked.processes > 1:
        return _measure_apart(asked)
    rows = [] if asked.json is None else _rows(asked.json)
    done = {(row.subject, row.contender, row.keep, row.seed) for row in rows}
    for name in asked.subject:
        for seed in asked.seeds:
            wanted = [
                (contender, keep)
                for keep in asked.keep
                for contender in asked.recipe
                if (name, contender, keep, seed) not in done
            ]
            if not wanted:
                continue
            case = SUBJECTS[name](seed, Quiet(), asked.data)
            with tempfile.TemporaryDirectory() as folder:
                anatomy = inspect(case.session.model)
                bench = Bench(name, case, anatomy, progress=Quiet(), folder=Path(folder))
                for contender, keep in wanted:
                    found = bench.measure(contender, CONTENDERS[contender], keep=keep)
                    _tell(found)
                    rows.append(found)
                    if asked.json is not None:
                        with asked.json.open("a", encoding="utf-8") as file:
                            file.write(found.model_dump_json() + "\n")
    if asked.page is not None:
        asked.page.write_text(page(rows), encoding="utf-8")
    return 0


def _measure_apart(asked: argparse.Namespace) -> int:
    """Measure each subject, keep ratio and seed in a process of its own, several at a time; all add to the same file."""
    data = [] if asked.data is None else ["--data", str(asked.data)]
    commands = [
        [
            *(sys.executable, "-m", "benchmarks.quality", "--json", str(asked.json), *data),
            *("--subject", name, "--keep", str(keep), "--seeds", str(seed)),
            *("--recipe", *asked.recipe),
        ]
        for seed, keep, name in itertools.product(asked.seeds, asked.keep, asked.subject)
    ]
    with ThreadPoolExecutor(asked.processes) as pool:
        ended = list(pool.map(lambda words: subprocess.run(words, check=False), commands))
    failed = [one for one in ended if one.returncode]
    for one in failed:
        print(f"ended with {one.returncode}: {' '.join(one.args[3:])}", file=sys.stderr, flush=True)
    if asked.page is not None:
        asked.page.write_text(page(_rows(asked.json)), encoding="utf-8")
    return int(bool(failed))


def _tell_cost(asked: argparse.Namespace) -> int:
    for name in asked.subject:
        case = SUBJECTS[name](asked.seeds[0], Quiet(), asked.data)
        for keep in asked.keep:
            with tempfile.TemporaryDirectory() as folder:
                anatomy = inspect(case.session.model)
                bench = Bench(name, case, anatomy, progress=Quiet(), folder=Path(folder))
                print(f"{name} keep {keep:g}: {bench.cost(keep=keep):.1f} forwards", flush=True)
    return 0


def _tell_how_far(asked: argparse.Namespace) -> int:
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            found = go_within(asked.max_drop, seed=seed, progress=Quiet())
        low, high = found.interval
        print(
            f"minilm --max-drop {asked.max_drop} seed {seed}: {found.removed:.1%} of the heads went, "
            f"{found.base:.4f} -> {found.value:.4f} [{low:+.4f}, {high:+.4f}] (n = {found.n:,}), "
            f"{'within' if found.kept_its_word else 'NOT within'} what was tolerated",
            flush=True,
        )
    return 0


def _read(words: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("quality", __doc__, quick="each recipe cuts a tiny random model once")
    parser.add_argument(
        "--subject",
        nargs="+",
        choices=SUBJECTS,
        default=[name for name in SUBJECTS if name != "tiny"],
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        choices=CONTENDERS,
        default=UNTRAINED,
    )
    parser.add_argument("--keep", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.5, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--processes", type=int, default=1, help="subjects, keep ratios and seeds at a time"
    )
    parser.add_argument("--data", type=Path, help="folder with clinc150/ and wikitext2-raw/")
    parser.add_argument("--cost", action="store_true", help="what headprune takes, in forwards")
    parser.add_argument("--max-drop", help="how far that goes on MiniLM, for each of --seeds")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the page, docs/quality.md, from all cuts"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="go on from the cuts that are in here, one a line, and add to them "
        "(default: docs/quality.jsonl; with --quick, nowhere)",
    )
    asked = command.read(parser, words)
    if asked.quick:
        asked.subject, asked.keep, asked.seeds, asked.processes = ["tiny"], [0.5], [0], 1
    elif asked.json is None:
        asked.json = command.DOCS / "quality.jsonl"
    return asked


def _rows(path: Path) -> list[Measured]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Measured.model_validate_json(line) for line in lines]


def _tell(found: Measured) -> None:
    seconds = time.perf_counter() - _START
    cut = f"{found.subject} {found.contender} keep {found.keep:g} seed {found.seed}"
    worth = f"{found.value:.4f} ({found.difference:+.4f} of {found.base:.4f})"
    work = f"reconstruct {found.reconstruct}, {found.seconds:.0f} s"
    print(f"{seconds:6.0f} s  {cut}: {worth}, {work}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
