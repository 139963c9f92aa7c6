"""Reconstruct output projections in closed form: heads that stay put out, as nearly as they can, what all did. No training.

Several ways are fitted side by side; rows that nothing was fitted on say which was best, and whether any was.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.heads import HeadId
from headprune.surgery.fit import fit, has_bias, having, put_back
from headprune.surgery.least_squares import How

WAYS: dict[str, tuple[How, ...]] = {
    "best": ("bias", "refit"),
    "scale": ("scale",),
    "bias": ("bias",),
    "refit": ("refit",),
}
"""What ``--reconstruct`` may say, and which ways are then tried."""


class Tried(BaseModel):
    """A way, and what was measured on rows that it didn't see.

    Args:
        how: What was solved.
        ridges: By the name of the projection, how strongly it was held to what was there.
        value: What was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: How
    ridges: dict[str, float]
    value: float


class Reconstruct(BaseModel):
    """What reconstruction did, measured on calibration rows that it didn't see.

    Args:
        kept: The way that won; None where nothing was better without any reconstruction, and nothing was changed.
        fitted_on: Examples that the weights were fitted on.
        held_out: Examples that decided.
        judged_by: What they decided by: a metric, or the loss.
        without_reconstruction: Its value with the heads silent and nothing reconstructed.
        tried: All ways.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: Tried | None
    fitted_on: int
    held_out: int
    judged_by: str
    without_reconstruction: float
    tried: tuple[Tried, ...]


@dataclass(frozen=True, eq=False)
class Look:
    """What rows that nothing was fitted on say of a model.

    Args:
        value: What users read: the metric, or the loss.
        loss: The mean loss.
        found: What the judge compares by.
    """

    value: float
    loss: float
    found: Any = None


@dataclass(frozen=True)
class Judge:
    """Who decides between ways.

    Args:
        look: ``look(mask)``: at the model as it stands, under a mask.
        best: ``best(looks)``: the place of the best; the first is the model that isn't reconstructed.
        name: What ``value`` is.
        examples: How many it looks at.
    """

    look: Callable[[Float[Tensor, " heads"]], Look]
    best: Callable[[Sequence[Look]], int]
    name: str
    examples: int


def reconstruct(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    judge: Judge,
    remove: Collection[HeadId],
    ways: Sequence[How] = WAYS["best"],
) -> Reconstruct:
    """Reconstruct the output projections of ``model``, whose heads are still there, for the time when ``remove`` have gone.

    Changes weights in place, and only where the judge finds the model better for it.

    Args:
        model: The model, before the heads are cut.
        anatomy: Its anatomy.
        batches: What the weights are fitted on.
        judge: What decides which way, and whether at all.
        remove: The heads that will go.
        ways: What is tried; the bias only where there is one.
    """
    if not has_bias(model, anatomy):
        ways = [way for way in ways if way != "bias"]
    mask = anatomy.mask(remove)
    looks = [judge.look(mask)]
    reconstructed = fit(model, anatomy, batches=batches, mask=mask, ways=ways) if ways else []
    for made in reconstructed:
        with having(model, made.weights):
            looks.append(judge.look(mask))
    best = judge.best(looks)
    if best:
        put_back(model, reconstructed[best - 1].weights)
    tried = tuple(
        Tried(how=how, ridges=made.ridges, value=look.value)
        for how, made, look in zip(ways, reconstructed, looks[1:], strict=True)
    )
    return Reconstruct(
        kept=tried[best - 1] if best else None,
        fitted_on=sum(batch.num_examples for batch in batches),
        held_out=judge.examples,
        judged_by=judge.name,
        without_reconstruction=looks[0].value,
        tried=tried,
    )
