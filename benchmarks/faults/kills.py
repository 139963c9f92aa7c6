"""SIGKILL at any moment, and between any two file operations, of everything that writes."""

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.child import start
from benchmarks.faults.scenarios import REPLACING, SCENARIOS, Bench, Files, Scenario
from benchmarks.faults.watch import Fault


def _trial(bench: Bench, number: int) -> Outcome:
    draw = bench.ground.draw("kills", number)
    between = number % 10 == 9
    scenarios = REPLACING if between else SCENARIOS
    scenario = scenarios[(number // 10 if between else number) % len(scenarios)]
    reference = bench.reference(scenario)
    before = scenario.lay_out(bench.ground)
    action = scenario.action(bench.ground)
    fault, blow = Fault(), None
    if between:
        # The 1st is the rename that moves the old content aside: killed before the 2nd, the target is gone.
        fault = Fault(
            draw.choice((2, 2, 2, draw.randint(1, max(reference.after, 1)))),
            counted="after",
            target=scenario.target,
        )
    elif number % 4 == 3:
        blow = draw.uniform(0, reference.seconds)
    else:
        fault = Fault(draw.randint(1, reference.changes), counted="changes")
    ended = start(bench.place, action, fault=fault).wait(blow=blow)
    kind = f"{scenario.name}{', between the renames' if between else ''}"
    if ended.code != -9 and (problem := ended.problem(codes=(0,))):
        return Outcome(kind, problem)
    standing = bench.standing(scenario)
    return Outcome(kind, _aftermath(bench, scenario, before), f"target {standing}")


def _aftermath(bench: Bench, scenario: Scenario, before: Files) -> str:
    """Say what a kill did that it must not, in what lies there and in what the next run makes of it."""
    if bench.standing(scenario).startswith("half"):
        return f"the target is {bench.standing(scenario)}"
    return (
        bench.changed(scenario, before)
        or bench.survives(scenario)
        or bench.run_again(scenario)
        or bench.changed(scenario, before)
    )


CAMPAIGN = Campaign(
    "kills",
    promise="The target is the old one or the new one, or the next run brings it back; the next run works and leaves nothing "
    "behind; nothing else is changed (P6).",
    tried="SIGKILL at a random time, before a random file operation, and between the renames of a replacement.",
    full=500,
    quick=0,
    weight=9,
    trial=_trial,
)
