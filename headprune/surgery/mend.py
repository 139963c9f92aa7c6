"""Mend the output projections in closed form: the heads that stay put out, as nearly as they can, what all did. No training.

Several ways are fitted side by side; rows that nothing was fitted on say which was best, and whether any was.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.heads import HeadId, HeadMask
from headprune.replay import losses
from headprune.surgery.fit import Way, fit, having, put_back
from headprune.surgery.least_squares import How

SCALE, BIAS = (Way("scale", 1e-3),), (Way("bias", 0.0),)
REFIT = (Way("refit", 1e-2), Way("refit", 1e-1), Way("refit", 1.0))
WAYS: dict[str, tuple[Way, ...]] = {
    "best": SCALE + BIAS + REFIT,
    "scale": SCALE,
    "bias": BIAS,
    "refit": REFIT,
}
"""What ``--mend`` may say, and which ways are then tried."""


class Tried(BaseModel):
    """A way, and the mean loss of the rows that it didn't see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: How
    ridge: float
    loss: float


class Mend(BaseModel):
    """What mending did, measured on calibration rows that it didn't see.

    Args:
        kept: The way that won; None where the loss was lower without any mending, and nothing was changed.
        fitted_on: Examples that the weights were fitted on.
        held_out: Examples that decided.
        loss_cut: Their mean loss with the heads silent and nothing mended.
        tried: All ways.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: Tried | None
    fitted_on: int
    held_out: int
    loss_cut: float
    tried: tuple[Tried, ...]


def mend(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    loss: Loss,
    remove: Collection[HeadId],
    ways: Sequence[Way] = WAYS["best"],
    tell: Callable[[str], None] | None = None,
) -> Mend:
    """Mend the output projections of ``model``, whose heads are still there, for the time when ``remove`` have gone.

    Changes weights in place, and only where that lowers the mean loss of ``held_out``.

    Args:
        model: The model, before the heads are cut.
        anatomy: Its anatomy.
        batches: What the weights are fitted on.
        held_out: What decides which way, and whether at all.
        loss: One loss per example.
        remove: The heads that will go.
        ways: What is tried.
        tell: Told how far it has come.
    """
    mask = torch.tensor(HeadMask.without(remove, anatomy.heads).values)

    def mean_loss() -> float:
        found = losses(
            model, anatomy, batches=held_out, loss=loss, masks=mask[None], base=mask, name="mend"
        )
        return float(found.double().mean())

    loss_cut = mean_loss()
    mended = fit(model, anatomy, batches=batches, mask=mask, ways=ways, tell=tell)
    tried = []
    for way, weights in zip(ways, mended, strict=True):
        with having(model, weights):
            tried.append(Tried(how=way.how, ridge=way.ridge, loss=mean_loss()))
    best = min(range(len(ways)), key=lambda place: tried[place].loss, default=None)
    helps = best is not None and tried[best].loss < loss_cut
    if best is not None and helps:
        put_back(model, mended[best])
    return Mend(
        kept=tried[best] if best is not None and helps else None,
        fitted_on=sum(batch.num_examples for batch in batches),
        held_out=sum(batch.num_examples for batch in held_out),
        loss_cut=loss_cut,
        tried=tuple(tried),
    )
