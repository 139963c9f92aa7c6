"""One subject, all methods, turn by turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.cases import Case
from benchmarks.speed.flops import Peak, minimal_flops, shape_of
from benchmarks.speed.methods import (
    Run,
    gradient_seconds,
    naive,
    one_forward,
    ours,
    reference,
    warm_up,
)
from benchmarks.speed.settings import Effort
from headprune.batch import PositionLoss

Tell = Callable[[str], None]


@dataclass
class Seconds:
    """Every sample that was taken, in seconds; the quickest counts."""

    forward: list[float] = field(default_factory=list)
    naive: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    ours_once: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """What was found for a subject.

    Args:
        name: The subject.
        about: What it is, in a line.
        heads: How many heads it has; ours ran all of them.
        naive_heads: How many the naive loop ran.
        reference_heads: How many the reference ran.
        examples: How many examples there are.
        reference_examples: How many the reference ran.
        tokens: Positions that one forward sees, padding included.
        reference_tokens: Positions that one forward of the reference sees on its examples.
        flops: The least operations that all heads take, the last block counted at the positions that the loss reads.
        flops_full: The same with the last block counted in full.
        samples: Seconds of all heads and examples.
        difference: Largest difference of a loss, ours to naive, on the heads that naive ran.
        reference_difference: The same, reference to naive, on what the reference ran.
    """

    name: str
    about: str
    heads: int
    naive_heads: int
    reference_heads: int
    examples: int
    reference_examples: int
    tokens: int
    reference_tokens: int
    flops: float
    flops_full: float
    samples: Seconds
    difference: float
    reference_difference: float

    @property
    def forward(self) -> float:
        """Seconds of a forward."""
        return min(self.samples.forward)

    @property
    def ours(self) -> float:
        """Seconds of ours, all that it does."""
        return min(self.samples.ours)

    @property
    def ours_by_rows(self) -> float:
        """Seconds of ours without what is done once a run: what grows with the rows."""
        pairs = zip(self.samples.ours, self.samples.ours_once, strict=True)
        return min(seconds - once for seconds, once in pairs)

    @property
    def naive(self) -> float:
        """Seconds of the naive loop."""
        return min(self.samples.naive)

    @property
    def reference(self) -> float:
        """Seconds of the reference."""
        return min(self.samples.reference)

    @property
    def gradient_forwards(self) -> float:
        """Gradient scores, in forwards."""
        return min(self.samples.gradient) / self.forward

    def as_json(self) -> dict[str, Any]:
        """Return what is derived from the samples, too."""
        return {
            "forward_seconds": self.forward,
            "naive_seconds": self.naive,
            "reference_seconds": self.reference,
            "ours_seconds": self.ours,
            "ours_seconds_without_once": self.ours_by_rows,
            "speedup_over_naive": self.naive / self.ours,
            "speedup_over_naive_without_once": self.naive / self.ours_by_rows,
            "speedup_over_reference": self.reference / self.ours,
            "speedup_over_reference_without_once": self.reference / self.ours_by_rows,
            "gradient_forwards": self.gradient_forwards,
        }


def compare(case: Case, effort: Effort, *, peak: Peak, notify: Tell) -> Comparison:
    """Run all methods in turns, the matrix products that give the peak among them."""
    columns = spread(case.num_heads, effort.heads)
    places = spread(len(columns), effort.reference_heads)
    few = [columns[place] for place in places]
    notify(f"{case.name}: warming up")
    warm_up(case, columns)
    samples = Seconds()
    found: dict[str, Run] = {}
    peak.sample()
    for turn in range(effort.repeats):
        samples.forward.append(one_forward(case))
        for name, run in _methods(case, columns, few).items():
            notify(f"{case.name}: {name}, turn {turn + 1} of {effort.repeats}")
            found[name] = run()
            getattr(samples, name).append(found[name].seconds)
            samples.forward.append(one_forward(case))
        samples.ours_once.append(found["ours"].once)
        samples.gradient.append(gradient_seconds(case))
        peak.sample()
    return Comparison(
        name=case.name,
        about=case.about,
        heads=case.num_heads,
        naive_heads=len(columns),
        reference_heads=len(few),
        examples=case.num_examples,
        reference_examples=sum(batch.num_examples for batch in case.reference_batches),
        tokens=case.num_tokens,
        reference_tokens=sum(batch.num_tokens for batch in case.reference_batches),
        flops=_flops(case, case.needed_positions),
        flops_full=_flops(case, None),
        samples=samples,
        difference=_difference(found["naive"].losses, found["ours"].losses[_rows(columns)]),
        reference_difference=_difference(
            found["naive"].losses[_rows(places)], found["reference"].losses
        ),
    )


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` of ``total`` places at even distances, the first and the last among them.

    >>> spread(144, 4)
    [0, 48, 95, 143]
    """
    count = min(total, count)
    if count == 1:
        return [total // 2]
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def _methods(
    case: Case, columns: Sequence[int], few: Sequence[int]
) -> dict[str, Callable[[], Run]]:
    return {
        "naive": lambda: naive(case, columns),
        "ours": lambda: ours(case),
        "reference": lambda: reference(case, few),
    }


def _rows(columns: Sequence[int]) -> list[int]:
    """Return the rows of losses that belong to the columns of masks; row 0 is that of all heads."""
    return [0, *(column + 1 for column in columns)]


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference on the examples that both have; not a number counts as infinite."""
    largest = (one[:, : other.shape[1]] - other).abs().max()
    return float(torch.nan_to_num(largest, nan=float("inf")))


def _flops(case: Case, needed: int | None) -> float:
    shape = shape_of(case.model, predicts_words=isinstance(case.task.loss, PositionLoss))
    sizes = [next(iter(batch.inputs.values())).shape for batch in case.batches]
    return minimal_flops(shape, [(rows, length) for rows, length in sizes], needed_positions=needed)
