"""Two commands at once on the same output, run or baseline."""

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import Action, start
from benchmarks.faults.scenarios import SCENARIOS, Bench, Scenario

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
_NEW = ("export, new", "prune, new", "hp.save, new", "score")
_TURNS = (
    "check --update-baseline",
    "export, new",
    "prune, new",
    "score",
    "hp.save, new",
    "export",
    "prune --stream",
    "hp.save",
    "prune",
)


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("pairs", number)
    name = _TURNS[number % len(_TURNS)]
    scenario = _BY_NAME[name]
    reference = bench.reference(scenario)
    before = scenario.lay_out(bench.ground)
    first = start(bench.place, scenario.action(bench.ground))
    late = draw.choice((0.0, draw.uniform(0, reference.seconds)))
    second = start(bench.place, _later(scenario.action(bench.ground), late), name="b")
    ends = (first.wait(), second.wait())
    problems = [_unlawful(scenario, end.problem(codes=(0, 2)), end.err) for end in ends]
    problem = next((problem for problem in problems if problem), "")
    codes = sorted(end.code for end in ends)
    standing = bench.standing(scenario)
    if not problem and name in _NEW and codes != [0, 2] and scenario.words:
        problem = f"exit codes {codes}: one is done, and the other is refused"
    if not problem and 0 not in codes:
        problem = f"exit codes {codes}: nobody got through"
    if not problem and standing != "new":
        problem = f"the target is {standing}"
    problem = problem or bench.changed(scenario, before) or _again(bench, scenario)
    if scenario.words:
        return Outcome(name, problem, f"exit codes {codes}")
    raised = sum(code != 0 for code in codes)
    return Outcome(name, problem, f"in Python, {raised} of 2 raised a HeadpruneError")


def _unlawful(scenario: Scenario, problem: str, err: str) -> str:
    """Return what is wrong about an end; ``hp.save`` may raise an error of ours."""
    return "" if not scenario.words and "headprune.errors." in err else problem


def _again(bench: Bench, scenario: Scenario) -> str:
    """Run once more where that replaces what is there: it works, and nothing is left over."""
    return bench.run_again(scenario) if scenario.replaces else ""


def _later(action: Action, seconds: float) -> Action:
    """Return an action that begins later, in a process that was started at once."""

    def act() -> None:
        import time

        time.sleep(seconds)
        action()

    return act


CAMPAIGN = Campaign(
    "pairs",
    promise="One is done and the other is refused in three parts, or both are done one after the other; what lies "
    "there is whole (P6).",
    tried="The same command twice, at the same time or a moment apart, on one output directory, file, run or baseline.",
    full=100,
    quick=0,
    weight=3,
    trial=_trial,
)
