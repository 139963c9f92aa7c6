"""A campaign: what it promises, how often it is tried, and one trial by number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.faults.scenarios import Bench


class Outcome(NamedTuple):
    """What one trial showed.

    Args:
        kind: What was tried, for counting.
        problem: What is wrong; nothing where all is right.
        note: How it went right, for counting.
        tries: How many tries this was.
    """

    kind: str
    problem: str = ""
    note: str = ""
    tries: int = 1


Trial = Callable[[Bench, int], Outcome]


@dataclass(frozen=True)
class Campaign:
    """One kind of fault.

    Args:
        name: Of the campaign, for ``--only``.
        promise: What must hold.
        tried: What is done, in a sentence.
        full: Trials of the full run.
        quick: Number of the trial of the quick run.
        weight: Share of the time.
        trial: Runs one; which numbers mean what is its own business.
    """

    name: str
    promise: str
    tried: str
    full: int
    quick: int
    weight: float
    trial: Trial
