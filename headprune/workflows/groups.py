"""``score`` and ``analyze`` once for each group of rows, such as a language, and what the groups have in common."""

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from headprune.analysis.comparison import Comparison
from headprune.config import Settings
from headprune.errors import ConfigError
from headprune.passes import Progress
from headprune.runs import (
    COMPARISON_FILE,
    ROLES_FILE,
    SCORES,
    make_next_run,
    refuse_used_run,
    unused_run,
    write_scores,
)
from headprune.runtime.distributed import World
from headprune.tasks.rows import read_table
from headprune.workflows.analyze import look
from headprune.workflows.compare import compare_documents
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.score import score_rows
from headprune.workflows.stepwise import check_settings

_MOST = 50
_UNFIT = re.compile(r"[^\w.+-]+")


def groups_of(settings: Settings, by: Sequence[str]) -> dict[str, Settings]:
    """Return the settings of each group, by its name.

    Args:
        settings: Those of all groups.
        by: A column of the data, whose values are the groups; or ``NAME=FILE`` of each group.

    Raises:
        ConfigError: It is neither, or there are fewer than two groups or more than 50.
        DataError: There is no such column.
    """
    files = dict(one.partition("=")[::2] for one in by if "=" in one)
    if len(files) == len(by):
        groups = {name: settings.replaced(data=file) for name, file in files.items()}
    elif len(by) == 1 and settings.data.data is not None and settings.data.where is None:
        table = read_table(settings.data.data, split=settings.data.split)
        groups = {
            value: settings.replaced(where=f"{by[0]}={value}") for value in table.groups(by[0])
        }
    else:
        raise ConfigError(
            "groups are the values of one column of the data, or a file each",
            where=f"`by={','.join(by)}`",
            hint="`by=COLUMN` with `data`, without `where`; or `by=en=en.csv,de=de.csv`",
        )
    named = {_UNFIT.sub("-", name).strip("-."): group for name, group in groups.items()}
    if not 2 <= len(groups) <= _MOST or len(named) < len(groups) or "" in named:
        raise ConfigError(
            f"it names {len(groups)} groups, of which {len(named.keys() - {''})} have a name of their own",
            where=f"`by={','.join(by)}`",
            hint=f"give from 2 to {_MOST} groups with different names",
        )
    return named


@dataclass(frozen=True)
class _Measured:
    """What was measured of a group: how it is written to a directory, and how the journal of the work is dropped."""

    write: Callable[[str], object]
    drop: Callable[[], None]


def _scored(settings: Settings, *, progress: Progress, world: World) -> _Measured:
    check_settings(settings, compares=True, world=world)
    scored, found = score_rows(settings, progress=progress, world=world)

    def drop() -> None:
        found.discard_journal()
        for one in scored:
            one.discard_journal()

    return _Measured(partial(write_scores, [one.scores for one in scored]), drop)


def _analyzed(settings: Settings, *, progress: Progress, world: World) -> _Measured:
    found = look(settings, progress=progress, world=world)
    return _Measured(found.write, found.discard_journal)


_MEASURES = {"score": (_scored, SCORES), "analyze": (_analyzed, ROLES_FILE)}


def measure_groups(
    command: Literal["score", "analyze"],
    settings: Settings,
    by: Sequence[str],
    *,
    progress: Progress,
    world: World,
) -> tuple[Comparison, Path] | None:
    """Do what ``score`` or ``analyze`` does for every group, and compare the groups.

    A directory holds a directory for each group and ``compare.json``. It is written when all groups are measured: a stopped run
    goes on from the journals of its groups.

    Args:
        command: What is done.
        settings: Of all groups.
        by: What the groups are, see :func:`groups_of`.
        progress: Where progress is reported.
        world: The processes that share the work. The first one writes; the others return nothing.
    """
    measure, file = _MEASURES[command]
    run_dir = settings.run.run_dir
    groups = groups_of(with_recorded_rows(settings, progress=progress), by)
    if run_dir is not None and world.is_main:
        for name in groups:
            refuse_used_run(str(Path(run_dir) / name), file=file)
    with unused_run(run_dir, file=COMPARISON_FILE) if world.is_main else nullcontext():
        measured = {}
        for name, group in groups.items():
            progress.notify(f"{name}:")
            measured[name] = measure(group, progress=progress, world=world)
        if not world.is_main:
            return None
        folder = make_next_run("by") if run_dir is None else Path(run_dir)
        for name, one in measured.items():
            one.write(str(folder / name))
        comparison = compare_documents([folder / name for name in groups], run_dir=str(folder))
        for one in measured.values():
            one.drop()
        return comparison
