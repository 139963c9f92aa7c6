"""Run campaigns, in several processes, within some minutes."""

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults import (
    calls,
    cycles,
    damage,
    hostile,
    kills,
    malformed,
    memory,
    pairs,
    signals,
)
from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.ground import Ground, build
from benchmarks.faults.place import Place
from benchmarks.faults.scenarios import Bench
from benchmarks.faults.warm import PICTURES, constants, import_all

CAMPAIGNS = {
    module.CAMPAIGN.name: module.CAMPAIGN
    for module in (kills, calls, damage, malformed, hostile, pairs, memory, cycles, signals)
}


class Request(NamedTuple):
    """What was asked for."""

    seed: int
    seconds: float
    quick: bool
    jobs: int
    only: tuple[str, ...]
    trial: int | None


Record = dict[str, Any]
"""One trial: campaign, trial, kind, problem, note, tries, seconds."""


def drive(request: Request, folder: Path) -> list[Record]:
    """Build the ground, run the campaigns, and return all trials."""
    names = request.only or tuple(CAMPAIGNS)
    if unknown := set(names) - set(CAMPAIGNS):
        sys.exit(
            f"error: there is no campaign {min(unknown)!r}\n  in:   --only\n  try:  {', '.join(CAMPAIGNS)}"
        )
    # Newer Pythons warn of every fork of a process that has threads; a child of ours uses none of its parent's.
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    started = time.monotonic()
    import_all()
    if not request.quick:
        import_all(PICTURES)
    ground = Ground(folder / "ground", request.seed, Place(folder / "w0" / "trial"))
    ground.folder.mkdir()
    ground.place.renew()
    constants()
    build(ground)
    notify(f"laid out in {time.monotonic() - started:.0f} s")
    chosen = [CAMPAIGNS[name] for name in names]
    workers = []
    for number in range(request.jobs):
        pid = os.fork()
        if pid == 0:
            _work(chosen, request, ground, number=number, until=started + request.seconds)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
    records: list[Record] = []
    for number in range(request.jobs):
        log = folder / f"w{number}" / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        records += [json.loads(line) for line in lines]
    return sorted(records, key=lambda record: (names.index(record["campaign"]), record["trial"]))


def _work(
    chosen: list[Campaign], request: Request, ground: Ground, *, number: int, until: float
) -> None:
    """Be a worker; never returns. Each campaign gets its share of the time that is left when it begins."""
    code = 1
    try:
        home = ground.folder.with_name(f"w{number}")
        bench = Bench(replace(ground, place=Place(home / "trial")))
        bench.place.renew()
        with (home / "log").open("w", encoding="utf-8") as log:
            for place, campaign in enumerate(chosen):
                left = until - time.monotonic()
                share = campaign.weight / sum(other.weight for other in chosen[place:])
                numbers = _numbers(campaign, request, number)
                end = time.monotonic() + (left * share if not request.quick else 600)
                bench.until = end
                for record in _trials(campaign, numbers, bench, end=end):
                    log.write(json.dumps(record) + "\n")
                    log.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - a worker must not go on as if it were the main process
        traceback.print_exc()
    finally:
        os._exit(code)


def _numbers(campaign: Campaign, request: Request, worker: int) -> Iterable[int]:
    if request.trial is not None:
        return (request.trial,)
    if request.quick:
        return (campaign.quick,)
    return range(worker, campaign.full, request.jobs)


def _trials(
    campaign: Campaign, numbers: Iterable[int], bench: Bench, *, end: float
) -> Iterator[Record]:
    for number in numbers:
        now = time.monotonic()
        if now > end:
            notify(f"{campaign.name}: no time for trial {number} and later")
            return
        try:
            outcome = campaign.trial(bench, number)
        except Exception as error:  # noqa: BLE001 - the campaign's own fault is told, and the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"the campaign itself: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
            outcome = Outcome("the campaign itself", what)
        if outcome.problem:
            notify(
                f"FAILED --only {campaign.name} --seed {bench.ground.seed} --trial {number}: {outcome.kind}: {outcome.problem}"
            )
        seconds = round(time.monotonic() - now, 3)
        yield {"campaign": campaign.name, "trial": number, **outcome._asdict(), "seconds": seconds}


def notify(text: str) -> None:
    """Say what is going on, beside what is printed for keeps."""
    print(f"faults: {text}", file=sys.stderr, flush=True)
