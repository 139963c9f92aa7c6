"""The n-th file operation fails, for every n, through everything that writes."""

import errno
from functools import cache
from random import Random

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import run
from benchmarks.faults.place import Limits
from benchmarks.faults.scenarios import SCENARIOS, Bench, lawful
from benchmarks.faults.watch import Fault

_ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, 0)
"""By number; the last is a file that may not grow: what fails then is the writing itself, in any language."""


@cache
def _cases(seed: int, name: str, calls: int) -> tuple[tuple[int, int], ...]:
    """Return every operation with every error, in an order that the seed tells."""
    cases = [(error, at) for error in _ERRORS for at in range(1, calls + 1)]
    Random(f"{seed}:{name}").shuffle(cases)
    return tuple(cases)


def _trial(bench: Bench, number: int) -> Outcome:
    scenario = SCENARIOS[number % len(SCENARIOS)]
    reference = bench.reference(scenario)
    cases = _cases(bench.ground.seed, scenario.name, reference.calls)
    error, at = cases[(number // len(SCENARIOS)) % len(cases)]
    before = scenario.lay_out(bench.ground)
    fault, limits = Fault(), Limits()
    if error:
        lasting = error == errno.ENOSPC and at % 2 == 0
        fault = Fault(at, error, lasting=lasting)
    else:
        limits = Limits(file_size=64 << (at % 11))
    ended = run(bench.place, scenario.action(bench.ground), fault=fault, limits=limits)
    kind = f"{scenario.name}, {errno.errorcode[error or errno.EFBIG]}"
    standing = bench.standing(scenario)
    problem = lawful(scenario, ended)
    if not problem and standing.startswith("half"):
        problem = f"the target is {standing}"
    if not problem and ended.code == 0 and standing != "new":
        problem = f"exit 0, and the target is {standing}"
    problem = (
        problem
        or bench.changed(scenario, before)
        or bench.survives(scenario)
        or bench.run_again(scenario)
    )
    what = (
        f"call {at} of {reference.calls}: " if error else f"files up to {64 << (at % 11)} bytes: "
    )
    return Outcome(kind, problem and what + problem, "no effect" if ended.code == 0 else "named")


CAMPAIGN = Campaign(
    "calls",
    promise="Every failure is told in three parts with exit 2 (`hp.save` raises a `HeadpruneError`); the target is as it was, "
    "nothing is half-written, the next run works (P6).",
    tried="One file operation after the other fails with ENOSPC (once, or from then on), EIO or EACCES, or files may not "
    "grow beyond a size (EFBIG).",
    full=2000,
    quick=0,
    weight=33,
    trial=_trial,
)
