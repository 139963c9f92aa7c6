"""How masks that start in an attention can be run: tried on the first examples, before it is relied on.

Replay is not exact where later blocks read more of earlier ones than their output (shared keys and values), where forwards
draw random numbers, or where rows of a batch are packed into one. Each attention gets the cheapest mode whose losses are those
of whole forwards; that two masks may share a forward is tried once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, PositionLoss
from headprune.errors import is_out_of_memory
from headprune.memory import attempt
from headprune.replay.narrow import find_tail, reads_nothing_else
from headprune.replay.projection import can_share
from headprune.replay.recording import Recording, record
from headprune.replay.resume import Mode, Resumption, run_masks

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
        starts: Which masks first differ from the base in which attention, in the order in which attentions run (None: in none).
        modes: How the masks are run that start in an attention.
        order: The order of all recorded calls: a batch that has another runs in full.
        last: The attention that runs last, if its block needn't run on positions that the loss doesn't read.
    """

    starts: Mapping[Site | None, Int[Tensor, " members"]]
    modes: Mapping[Site, Mode]
    order: tuple[int, ...]
    last: Site | None = None


def find_routes(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    base: Float[Tensor, " heads"],
    masks: Float[Tensor, "masks heads"],
) -> ReplayModes:
    """Find where each mask starts, and try out on the first examples of ``batch`` how it can be run from there."""
    few = batch.take(TRIED)
    if isinstance(loss, PositionLoss):
        few, loss = _shortened(few, loss)
    given = Resumption(
        model, anatomy, few, loss, base, record(model, anatomy, few, loss, base=base)
    )
    order = in_order(anatomy, given.recording)
    starts = _starts(order, anatomy, masks != base)
    sites = [site for site in starts if site is not None]
    if not sites or not _stacks(given, sites[-1]):
        return ReplayModes(starts, dict.fromkeys(sites, "plain"), given.recording.order)
    trials = [_trial(given, site, both=site is sites[-1]) for site in sites]
    modes = {trial.site: _mode(given, trial) for trial in trials}
    last = order[-1] if _narrows(given, order[-1], trials, modes) else None
    return ReplayModes(starts, modes, given.recording.order, last)


def _shortened(batch: Batch, loss: PositionLoss) -> tuple[Batch, PositionLoss]:
    """Return a batch's first positions, and the loss as large as it is on all of them: tolerances are for that size."""
    few = batch.start(_POSITIONS)
    share = batch.num_tokens / few.num_tokens
    return few, PositionLoss(lambda *args: loss.part(*args) * share, loss.stop)


def _starts(sites: Sequence[Site], anatomy: Anatomy, differs: Tensor) -> dict[Site | None, Tensor]:
    waiting = torch.ones(len(differs), dtype=torch.bool)
    found: dict[Site | None, Tensor] = {}
    for site in sites:
        here = waiting & differs[:, anatomy.columns[site.id]].any(dim=1)
        waiting &= ~here
        if bool(here.any()):
            found[site] = torch.nonzero(here).flatten()
    if bool(waiting.any()):
        found[None] = torch.nonzero(waiting).flatten()
    return found


def in_order(anatomy: Anatomy, recording: Recording) -> tuple[Site, ...]:
    """Return the attentions in the order in which they ran; first those of which that isn't known."""

    def began(site: Site) -> int:
        here = recording.sites.get(site.id)
        return here.projection.began if here else 0

    return tuple(sorted(anatomy.sites, key=began))


class _Trial(NamedTuple):
    """Masks that start in an attention, and their losses by whole forwards."""

    site: Site
    masks: Tensor
    expected: Tensor


def _trial(given: Resumption, site: Site, *, both: bool) -> _Trial:
    """Return a trial with two masks or, where resuming alone is to be tried and not stacking, one."""
    masks = _trial_masks(given, site)[: 2 if both else 1]
    return _Trial(site, masks, run_masks(given, masks, site=site, mode="stacked"))


def _trial_masks(given: Resumption, site: Site) -> Tensor:
    """Return two masks that differ from the base in one head of ``site`` each, or in all of them."""
    masks = given.base.repeat(2, 1)
    columns = given.anatomy.columns[site.id]
    if torch.finfo(given.model.dtype).eps > _COARSE:
        masks[0, columns] = 1 - masks[0, columns]
        masks[1, columns] -= 0.5
    else:
        masks[0, columns.start] = 1 - masks[0, columns.start]
        masks[1, columns.stop - 1] -= 0.5
    return masks


def _stacks(given: Resumption, site: Site) -> bool:
    """Whether two masks in one forward are two forwards of one mask each."""
    masks = _trial_masks(given, site)
    plain = run_masks(given, masks, site=site, mode="plain")
    return _agrees(given, _Trial(site, masks, plain), "stacked")


def _mode(given: Resumption, trial: _Trial) -> Mode:
    here = given.recording.sites.get(trial.site.id)
    if here is None:
        return "stacked"
    shares = can_share(given.model, trial.site, here, rows=given.batch.num_rows)
    modes: tuple[Mode, ...] = ("shared", "block") if shares else ("block",)
    return next((mode for mode in modes if _agrees(given, trial, mode)), "stacked")


def _narrows(
    given: Resumption, last: Site, trials: Sequence[_Trial], modes: Mapping[Site, Mode]
) -> bool:
    """Whether the last block needn't run in full: shown for every attention that masks start in."""
    tail = find_tail(given.model, given.batch, given.loss, given.recording, last=last)
    resumed = [trial for trial in trials if modes[trial.site] != "stacked"]
    if tail is None or not resumed:
        return False
    if not reads_nothing_else(given.model, given.batch, given.loss, given.recording, tail):
        return False
    narrow = replace(given, tail=tail)
    return all(_agrees(narrow, trial, modes[trial.site]) for trial in resumed)


def _agrees(given: Resumption, trial: _Trial, mode: Mode) -> bool:
    found, _reason = attempt(partial(_tried, given, trial.masks, trial.site, mode))
    effect = trial.expected - given.recording.losses
    return found is not None and is_same(
        found, trial.expected, dtype=given.model.dtype, effect=effect
    )


def _tried(given: Resumption, masks: Tensor, site: Site, mode: Mode) -> Tensor | None:
    """Return the losses, or None: a block that is handed what doesn't fit raises what it likes."""
    try:
        return run_masks(given, masks, site=site, mode=mode)
    except Exception as error:
        if is_out_of_memory(error):  # which says nothing about the mode
            raise
        return None


def modes_on(routes: ReplayModes, given: Resumption, *, stacks: bool) -> Mapping[Site, Mode]:
    """Return how masks are run on a batch: as on the first examples, unless it is of another kind.

    Its modules may run in another order, or something that isn't its rows may have the length of its rows by chance: then two
    copies of it aren't twice what it is.

    Args:
        routes: What was found on the first examples.
        given: The batch.
        stacks: Whether it will be stacked.
    """
    if not routes.modes:
        return routes.modes
    last, mode = list(routes.modes.items())[-1]
    trusted = given.recording.order == routes.order
    if trusted and stacks and mode != "plain":
        masks = given.base.repeat(2, 1)
        twice, reason = attempt(partial(_tried, given, masks, last, mode))
        if reason is not None:  # two don't fit: then none will be stacked
            return routes.modes
        trusted = twice is not None and all(
            is_same(one, given.recording.losses, dtype=given.model.dtype) for one in twice
        )
    return routes.modes if trusted else dict.fromkeys(routes.modes, "plain")


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


def summary(routes: ReplayModes) -> str | None:
    """Return what a user should know: which attentions cost whole forwards, and that nothing is wrong."""
    slow = [str(site.id) for site, mode in routes.modes.items() if mode in ("stacked", "plain")]
    if not slow:
        return None
    shown = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return f"heads of {shown} are measured by whole forwards: resuming inside the model isn't exact there"
