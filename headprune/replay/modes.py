"""How masks that start in an attention can be run: tried on the first examples, before it is relied on.

Replay is not exact where later blocks read more of earlier ones than their output (shared keys and values), where forwards
draw random numbers, or where rows of a batch are packed into one. Each attention gets the cheapest mode whose losses are those
of whole forwards; that two masks may share a forward is tried once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, Loss, PositionLoss
from headprune.errors import is_out_of_memory
from headprune.passes import attempt
from headprune.replay.record import Recording
from headprune.replay.resume import Mode, ReplayState, record, run_masks

TRIED = 2
"""Examples that are tried."""

# Of a loss that is a sum over positions: a few show as well as a thousand would whether a block is resumed exactly.
_POSITIONS = 16
# In units of the data type's rounding: some operations round otherwise in another batch. A wrong replay is off by far more.
_ROUNDINGS = 64
# Half precision rounds by about as much as a head moves a loss. There whole attentions are silenced in the trials, and replay
# must reproduce what that does to this share of it.
_COARSE = 1e-4
_SHARE_OF_EFFECT = 0.25


@dataclass(frozen=True, eq=False)
class ReplayModes:
    """How some masks are run.

    Args:
        starts: Which masks first silence a head in which attention, in the order in which attentions run (None: in none).
        by_site: How the masks are run that start in an attention.
        order: The order of all recorded calls: a batch that has another runs in full.
    """

    starts: Mapping[Site | None, Int[Tensor, " members"]]
    by_site: Mapping[Site, Mode]
    order: tuple[int, ...]

    def on(self, state: ReplayState, *, stacks: bool) -> Mapping[Site, Mode]:
        """Return how masks are run on a batch: as on the first examples, unless it is of another kind.

        Its modules may run in another order, or something that isn't its rows may have the length of its rows by chance: then two
        copies of it aren't twice what it is.
        """
        if not self.by_site:
            return self.by_site
        last, mode = list(self.by_site.items())[-1]
        trusted = state.recording.order == self.order
        if trusted and stacks and mode != "plain":
            masks = torch.ones(2, len(state.anatomy.heads))
            twice, reason = attempt(partial(_tried, state, masks, last, mode))
            if reason is not None:  # two don't fit: then none will be stacked
                return self.by_site
            trusted = twice is not None and all(
                is_same(one, state.recording.losses, dtype=state.model.dtype) for one in twice
            )
        return self.by_site if trusted else dict.fromkeys(self.by_site, "plain")


def find_modes(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    masks: Float[Tensor, "masks heads"],
) -> ReplayModes:
    """Find where each mask starts, and try out on the first examples of a batch how it can be run from there.

    Args:
        model: The model.
        anatomy: Its anatomy.
        batch: The rows, on the model's device.
        loss: One loss per example.
        masks: On the CPU; columns are ``anatomy.heads``.
    """
    few = batch.take(TRIED)
    if isinstance(loss, PositionLoss):
        few, loss = _shortened(few, loss)
    state = record(model, anatomy, few, loss)
    starts = _starts(in_order(anatomy, state.recording), anatomy, masks != 1)
    sites = [site for site in starts if site is not None]
    if not sites or not _agrees(state, sites[-1], "stacked", expected_by="plain"):
        return ReplayModes(starts, dict.fromkeys(sites, "plain"), state.recording.order)
    modes = {site: _mode(state, site, masks=2 if site is sites[-1] else 1) for site in sites}
    return ReplayModes(starts, modes, state.recording.order)


def _shortened(batch: Batch, loss: PositionLoss) -> tuple[Batch, PositionLoss]:
    """Return a batch's first positions, and the loss as large as it is on all of them: tolerances are for that size."""
    few = batch.start(_POSITIONS)
    share = batch.num_tokens / few.num_tokens
    return few, PositionLoss(lambda *args: loss.part(*args) * share, loss.stop)


def _starts(sites: Sequence[Site], anatomy: Anatomy, silenced: Tensor) -> dict[Site | None, Tensor]:
    waiting = torch.ones(len(silenced), dtype=torch.bool)
    starts: dict[Site | None, Tensor] = {}
    for site in sites:
        begins = waiting & silenced[:, anatomy.columns[site.id]].any(dim=1)
        waiting &= ~begins
        if bool(begins.any()):
            starts[site] = torch.nonzero(begins).flatten()
    if bool(waiting.any()):
        starts[None] = torch.nonzero(waiting).flatten()
    return starts


def in_order(anatomy: Anatomy, recording: Recording) -> tuple[Site, ...]:
    """Return the attentions in the order in which they ran; first those of which that isn't known."""

    def began(site: Site) -> int:
        call = recording.sites.get(site.id)
        return call.projection.began if call else 0

    return tuple(sorted(anatomy.sites, key=began))


def _mode(state: ReplayState, site: Site, *, masks: int) -> Mode:
    """Return how masks that start in ``site`` are run; with one mask, resuming alone is tried and not stacking."""
    resumes = site.id in state.recording.sites and _agrees(
        state, site, "block", expected_by="stacked", masks=masks
    )
    return "block" if resumes else "stacked"


def _agrees(
    state: ReplayState, site: Site, mode: Mode, *, expected_by: Mode, masks: int = 2
) -> bool:
    """Whether a mode gives the losses of another one, under so many masks that start in ``site``."""
    trial = _trial_masks(state, site)[:masks]
    expected = run_masks(state, trial, site=site, mode=expected_by)
    losses, _reason = attempt(partial(_tried, state, trial, site, mode))
    effect = expected - state.recording.losses
    return losses is not None and is_same(losses, expected, dtype=state.model.dtype, effect=effect)


def _trial_masks(state: ReplayState, site: Site) -> Tensor:
    """Return two masks that silence one head of ``site`` each (the second by half), or all of them."""
    masks = torch.ones(2, len(state.anatomy.heads))
    columns = state.anatomy.columns[site.id]
    if torch.finfo(state.model.dtype).eps > _COARSE:
        masks[0, columns] = 0
        masks[1, columns] = 0.5
    else:
        masks[0, columns.start] = 0
        masks[1, columns.stop - 1] = 0.5
    return masks


def _tried(state: ReplayState, masks: Tensor, site: Site, mode: Mode) -> Tensor | None:
    """Return the losses, or None: a block that is handed what doesn't fit raises what it likes."""
    try:
        return run_masks(state, masks, site=site, mode=mode)
    except Exception as error:
        if is_out_of_memory(error):  # which says nothing about the mode
            raise
        return None


def is_same(
    one: Tensor, other: Tensor, *, dtype: torch.dtype, effect: Tensor | None = None
) -> bool:
    """Whether losses agree to the rounding of ``dtype``; in half precision to a share of the ``effect`` as well."""
    rounding = torch.finfo(dtype).eps
    if rounding <= _COARSE:
        bound = _ROUNDINGS * rounding
        return bool(torch.allclose(one, other, rtol=bound, atol=bound))
    room = rounding * other.abs()
    if effect is not None:
        room = room / 2 + _SHARE_OF_EFFECT * effect.abs()
    return bool(((one - other).abs() <= room).all())


def summary(modes: ReplayModes) -> str | None:
    """Return what a user should know: which attentions cost whole forwards, and that nothing is wrong."""
    slow = [str(site.id) for site, mode in modes.by_site.items() if mode in ("stacked", "plain")]
    if not slow:
        return None
    shown = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return f"heads of {shown} are measured by whole forwards: resuming inside the model isn't exact there"
