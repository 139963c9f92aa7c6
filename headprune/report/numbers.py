"""How numbers are written where people read them: as many digits as mean something, and intervals beside them."""

import math

from headprune.artefact import Latency
from headprune.gate import spaced


def number(value: float, *, sign: str = "-") -> str:
    """Return a metric, or a difference of it, as text."""
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.2f}"


def interval(ends: tuple[float, float], *, sign: str = "-") -> str:
    """Return an interval of a metric, or of a difference of it."""
    return f"[{number(ends[0], sign=sign)}, {number(ends[1], sign=sign)}]"


def milliseconds(value: float) -> str:
    """Return milliseconds with three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def milliseconds_interval(took: Latency) -> str:
    """Return the interval of a time; empty where there is none."""
    ends = " ".join((f"[{milliseconds(took.interval[0])},", f"{milliseconds(took.interval[1])}]"))
    return ends if took.repeats else ""


def timed(name: str) -> str:
    """Return what was timed, by a size's name: ``batch_1`` or ``batch_1_length_512``."""
    batch, _, length = name.partition("_length_")
    if length:
        return f"latency, {batch.removeprefix('batch_')} x {length} tokens"
    return f"latency, {spaced(batch)}"


def share(before: int, after: int) -> str:
    """Return how much less or more there is, as a share of what was there."""
    return "the same" if before == after else f"{after / before - 1:+.1%}" if before else ""
