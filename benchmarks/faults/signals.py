"""SIGINT and SIGTERM at any moment, the first second included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import catches_termination, start
from benchmarks.faults.ground import DATA
from benchmarks.faults.place import Ended
from benchmarks.faults.scenarios import SCENARIOS, Bench, Scenario

_SWEEP = (
    "sweep",
    "bert",
    *DATA,
    "--methods",
    "magnitude",
    "--points",
    "0.5",
    "--no-latency",
    "-q",
    "--out",
    "sweep",
)
_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
_COMMANDS = (
    _BY_NAME["score"],
    _BY_NAME["export"],
    _BY_NAME["prune"],
    Scenario("sweep", _SWEEP, ("bert", "train.csv", "test.csv"), "sweep"),
    _BY_NAME["heal"],
)
_FRESH_EVERY = 25
_ROOT = Path(__file__).parent.parent.parent


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("signals", number)
    scenario = _COMMANDS[number % len(_COMMANDS)]
    which = draw.choice((signal.SIGINT, signal.SIGTERM))
    fresh = number % _FRESH_EVERY == _FRESH_EVERY - 1
    reference = bench.reference(scenario)
    before = scenario.lay_out(bench.ground)
    if fresh:
        after = draw.uniform(0, 3)
        ended = _fresh(bench, scenario, after, which)
    else:
        after = draw.uniform(0, reference.seconds)
        running = start(bench.place, scenario.action(bench.ground))
        ended = running.wait(blow=after, number=which, caught=True)
    kind = f"{scenario.name}, {which.name}{', while it starts' if fresh else ''}"
    problem = _unlawful(ended)
    standing = bench.standing(scenario)
    if not problem and standing.startswith("half"):
        problem = f"the target is {standing}"
    problem = problem or bench.changed(scenario, before) or bench.run_again(scenario)
    note = "stopped with 130" if ended.code == 130 else "done before"
    return Outcome(kind, problem and f"after {after:.2f} s: {problem}", note)


def _unlawful(ended: Ended) -> str:
    if problem := ended.problem(codes=(0, 130)):
        return problem
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.code == 130 and (len(lines) != 1 or "stopped" not in lines[0]):
        return f"exit 130 with {len(lines)} lines: {' | '.join(lines)[:120]!r}"
    return ""


def _fresh(bench: Bench, scenario: Scenario, after: float, which: signal.Signals) -> Ended:
    """Start Python anew, so that the signal comes while it imports."""
    place = bench.place
    places = {"HOME": place.home, "HF_HOME": place.home, "TMPDIR": place.temporary}
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, **{k: str(v) for k, v in places.items()}, "PYTHONPATH": path}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "headprune", *scenario.words],
        cwd=place.work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not catches_termination(process.pid):
        time.sleep(0.003)
    time.sleep(after)
    process.send_signal(which)
    out, err = process.communicate(timeout=120)
    seconds = time.monotonic() - started
    return Ended(process.returncode, out, err, seconds, 0, 0, 0, (), False, (), 0)


CAMPAIGN = Campaign(
    "signals",
    promise="Ctrl-C and SIGTERM end any command with 130 and one line; run again it ends with the results of a run that wasn't "
    "stopped (P6).",
    tried="SIGINT or SIGTERM at a random moment of score, export, prune, sweep and heal; now and then while Python still "
    "imports.",
    full=200,
    quick=0,
    weight=5,
    trial=_trial,
)
