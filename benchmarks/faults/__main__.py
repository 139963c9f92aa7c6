"""Try what happens to files when things go wrong, within some minutes; exit 1 where a promise didn't hold.

Kills, failing calls, damage, malformed and hostile input, two commands at once, memory that runs out, signals: about an hour
on two cores. A campaign a day: ``--only kills --json kills.json``, later ``--only calls --add kills.json`` and ``--page
docs/reliability.md``. Run it as an ordinary user: as root it becomes one, and refuses where it can't (``--as-root`` goes on).
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command


def main(words: Sequence[str] | None = None) -> int:
    """Try, print, write; large libraries are imported late, after HF_HOME names a folder of our own."""
    given = command.read(_parser(), words)
    folder = Path(tempfile.mkdtemp(prefix="headprune-faults-"))
    owner = os.getpid()
    # Read at once: what may read them may be given up soon.
    texts = [Path(name).read_text(encoding="utf-8") for name in given.add or ()]
    try:
        _own_environment(folder)
        from benchmarks.faults import page
        from benchmarks.faults.drive import Request, drive
        from benchmarks.faults.safety import become_ordinary

        as_root = become_ordinary(folder, as_root=given.as_root)
        request = Request(
            seed=given.seed,
            seconds=60 * given.minutes,
            quick=given.quick,
            jobs=1 if given.quick or given.trial is not None else given.jobs,
            only=tuple(name for name in given.only.split(",") if name),
            trial=given.trial,
        )
        earlier = [json.loads(text) for text in texts]
        document = page.document(
            drive(request, folder), request=request, as_root=as_root, earlier=earlier
        )
        if given.json:
            command.write_json(given.json, document)
        if given.page:
            given.page.write_text(page.page(document), encoding="utf-8")
        print("\n".join(page.summary(document)))
        return 1 if page.failures(document) else 0
    finally:
        if os.getpid() == owner and not given.keep_folder:
            shutil.rmtree(folder, ignore_errors=True)


def _own_environment(folder: Path) -> None:
    """Let every library keep what it keeps in ``folder``, use one thread, and stay offline."""
    home = folder / "home"
    home.mkdir()
    for name in (
        *("HF_MODULES_CACHE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"),
        *("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"),
    ):
        os.environ.pop(name, None)
    os.environ.update(
        HOME=str(home),
        HF_HOME=str(home),
        MPLCONFIGDIR=str(home),
        HF_HUB_OFFLINE="1",
        HF_EVALUATE_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        COLUMNS="160",
        PYTHONDONTWRITEBYTECODE="1",
    )


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("faults", __doc__, quick="one trial of each campaign")
    command.add_files(parser, page="docs/reliability.md")
    add = parser.add_argument
    add(
        "--minutes",
        type=float,
        default=60,
        help="what is not begun by then is left out (default: 60)",
    )
    add("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add(
        "--only",
        metavar="A,B",
        default="",
        help="kills, calls, damage, malformed, hostile, pairs, memory, cycles, signals",
    )
    add("--trial", type=int, help="this trial alone, of the campaign that --only names")
    add("--jobs", type=int, default=2, help="processes that try at the same time (default: 2)")
    add(
        "--add",
        metavar="FILE",
        action="append",
        help="what another run with --json found: its campaigns stand on the page, too",
    )
    add(
        "--as-root",
        action="store_true",
        help="go on as root where no ordinary user can read this Python",
    )
    add("--keep-folder", action="store_true", help="leave the temporary folder, to look into it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
