"""What a detector that runs the model itself is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from headprune.analysis.roles import Measure
from headprune.anatomy import Anatomy
from headprune.passes import RunContext


@dataclass(frozen=True, eq=False)
class RoleRequest:
    """The one argument of detectors that read weights.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        tokenizer: Its tokenizer.
        context: How the work runs: progress, journal, processes.
        seed: Of what is drawn.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    tokenizer: Any
    context: RunContext
    seed: int = 0


def measure_of_shares(
    role: str,
    shares: Sequence[float | None],
    *,
    errors: Sequence[float] | None,
    baseline: float,
    n: int,
) -> Measure:
    """Return a measure of one number per head.

    Args:
        role: The role.
        shares: The numbers; None where a head has none.
        errors: Their standard errors; None where nothing was sampled.
        baseline: What chance comes to.
        n: How many tokens each number is of.
    """
    half = [0.0] * len(shares) if errors is None else [1.96 * error for error in errors]
    pairs = list(zip(shares, half, strict=True))
    known = errors is not None
    return Measure(
        role=role,
        values=tuple(shares),
        low=tuple(value - wide if value is not None and known else None for value, wide in pairs),
        high=tuple(value + wide if value is not None and known else None for value, wide in pairs),
        baseline=tuple(None if value is None else baseline for value in shares),
        queries=tuple(0 if value is None else n for value in shares),
        examples=tuple(0 if value is None else n for value in shares),
    )
