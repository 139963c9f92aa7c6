"""What the numbers should be, and whether they are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.speed.compare import Comparison
from benchmarks.speed.memory import Memory

OVER_NAIVE = {"bert-base": 1.8, "minilm": 1.65, "smollm2": 1.6}
OVER_REFERENCE = {"minilm": 8.0}
SHARE_OF_PEAK = {"bert-base": 0.8}
GRADIENT_FORWARDS = 2.8
MEMORY_RATIO = 2.5
MEMORY_GROWTH = 1.1  # twice the rows should change nothing; allocators aren't that exact
DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Verdict:
    """A measured number beside its target.

    Args:
        what: What is judged, in words.
        measured: What it is.
        target: What it should be.
        sign: Whether it should be at least or at most that.
        detail: What else should be known.
    """

    what: str
    measured: float
    target: float
    sign: Literal[">=", "<="]
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is what it should be."""
        if self.sign == ">=":
            return self.measured >= self.target
        return self.measured <= self.target


def judge(found: Iterable[Comparison], memory: Memory, *, peak: float) -> list[Verdict]:
    """Hold everything that has a target against it. Speed counts all that a run does, what it does once included."""
    verdicts = [verdict for each in found for verdict in _of_subject(each, peak)]
    whole = f"whole processes {memory.process_ratio:.2f}"
    return [
        *verdicts,
        Verdict(
            "memory, ablation / evaluation",
            memory.ratio,
            MEMORY_RATIO,
            "<=",
            f"without libraries; {whole}",
        ),
        Verdict("memory, twice the rows", memory.growth, MEMORY_GROWTH, "<="),
    ]


def _of_subject(found: Comparison, peak: float) -> Iterator[Verdict]:
    name = found.name
    if name in OVER_NAIVE:
        yield Verdict(
            f"{name}, times as fast as naive",
            found.naive / found.ours,
            OVER_NAIVE[name],
            ">=",
            f"{found.naive / found.ours_by_rows:.2f} without what is done once",
        )
    if name in OVER_REFERENCE:
        yield Verdict(
            f"{name}, times as fast as the reference",
            found.reference / found.ours,
            OVER_REFERENCE[name],
            ">=",
            f"{found.reference / found.ours_by_rows:.2f} without what is done once",
        )
    if name in SHARE_OF_PEAK:
        yield Verdict(
            f"{name}, share of the peak",
            found.flops / found.ours / peak,
            SHARE_OF_PEAK[name],
            ">=",
            f"{found.flops / found.ours_by_rows / peak:.2f} without what is done once; "
            f"{found.flops_full / found.ours / peak:.2f} with the last block counted in full",
        )
    yield Verdict(
        f"{name}, gradient scores in forwards", found.gradient_forwards, GRADIENT_FORWARDS, "<="
    )
    yield Verdict(f"{name}, largest difference to naive", found.difference, DIFFERENCE, "<=")
