"""How fast exact leave-one-out ablation is, beside two other ways to get the same numbers.

Our own naive loop, the loop of Michel's script, and headprune.replay.losses, on a random BERT-base, on all-MiniLM-L6-v2 with
STS-B and on SmolLM2-135M; gradient scores, memory and linear cost besides. About 10 minutes on two cores that do nothing
else. Exit 1 where a target is missed.

Memory comes first, in processes of its own, while this one is small; then everything that is timed, in this process.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.command import write_json
from benchmarks.speed.memory import Memory, measure_memory
from benchmarks.speed.settings import Request, read

_START = time.perf_counter()


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a target was missed."""
    request = read(words)
    _tell("memory, in processes of their own")
    memory = measure_memory(request)
    passed = _timings(request, memory)
    _tell("done")
    return 0 if passed or request.quick else 1


def _timings(request: Request, memory: Memory) -> bool:
    """Measure and print the rest; returns whether all targets are met. Large libraries are imported in here."""
    import torch
    from rich.console import Console

    from benchmarks.speed import report
    from benchmarks.speed.cases import open_case
    from benchmarks.speed.compare import compare
    from benchmarks.speed.flops import Peak
    from benchmarks.speed.linear import measure_linear
    from benchmarks.speed.machine import describe, load
    from benchmarks.speed.profiling import profile_batch
    from benchmarks.speed.targets import judge

    device = torch.device(request.device)
    machine = describe(device)
    peak = Peak(device, request.effort.products)
    peak.sample()  # warms up as well
    comparisons, profiles = [], {}
    for name in request.subjects:
        case = open_case(name, request.sizes, request.device)
        comparisons.append(compare(case, request.effort, peak=peak, notify=_tell))
        if request.profile:
            _tell(f"{name}: profile")
            profiles[name] = profile_batch(case)
        del case
    linear = measure_linear(request.sizes, request.effort, request.device, notify=_tell)
    peak.sample()
    machine["load_at_the_end"] = load()
    verdicts = judge(comparisons, memory, peak=peak.best)

    console = Console() if sys.stdout.isatty() else Console(width=130)
    for comparison in comparisons:
        report.show_comparison(comparison, console, peak=peak.best)
    for name, operators in profiles.items():
        report.show_profile(name, operators, console)
    report.show_linear(linear, console)
    report.show_memory(memory, console)
    report.show_verdicts(verdicts, console)
    if request.quick:
        console.print("A smoke run: these sizes say nothing about speed, and no target counts.")
    if request.json:
        found = report.as_json(
            machine=machine,
            settings={**asdict(request), "json": str(request.json)},
            peak_samples=peak.samples,
            comparisons=comparisons,
            linear=linear,
            memory=memory,
            profiles=profiles,
            verdicts=verdicts,
        )
        write_json(request.json, found)
    return all(verdict.passed for verdict in verdicts)


def _tell(text: str) -> None:
    """Say what is going on, beside what is printed for keeps."""
    print(f"speed: {time.perf_counter() - _START:4.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
