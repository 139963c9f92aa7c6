"""What a budget of the whole model is counted in: from shapes, or, for latency, from a table that is measured here."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import isotonic_regression
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch
from headprune.errors import PlanError
from headprune.footprint import fastest_ms, median_batch
from headprune.heads import HeadId
from headprune.planning import Constraints, Prices, counted
from headprune.planning.names import selected_sites
from headprune.planning.units import options
from headprune.surgery import cut

# Rows of a forward that is timed: with one row it is overhead that counts, not heads.
ROWS = 32
_LEVELS = 9
# For each of two models that take turns: so long, and so many runs, for noise only goes with many; and about the most for all.
_SECONDS = 0.5
_RUNS = 6
_MOST_SECONDS = 60.0

_Shape: TypeAlias = tuple[object, ...]


def prices_of(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    batches: Callable[[], Sequence[Batch]],
) -> Prices | None:
    """Return what a plan's target is counted in; None where its budget is one of heads.

    Args:
        model: The model; its shapes are enough but for latency.
        anatomy: Where its heads are.
        constraints: The budget.
        batches: Gives the data that latency is measured on.

    Raises:
        PlanError: The model takes none of what is counted.
    """
    if constraints.target is None:
        return None
    resource = constraints.target.resource
    if resource == "latency":
        return _measured(model, anatomy, constraints=constraints, batches=batches())
    return counted(model, anatomy, resource=resource, pad=constraints.gqa == "pad")


def _measured(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    batches: Sequence[Batch],
) -> Prices:
    """Return the latency of a forward of 32 rows of median length, and what each attention saves of it.

    A table as in Kwon et al. 2022, but of the whole model: all attentions of one shape are cut alike to a number of heads,
    the whole model is timed in turns with the uncut one, and the difference is divided among them. Up to 9 numbers of heads
    are measured, those between lie on straight lines; noise by which fewer heads would be slower is levelled out (isotonic
    regression).
    """
    if not batches:
        raise PlanError(
            "latency is measured on data, and there is none",
            where="target_latency",
            hint="give the batches, too: hp.plan(..., model=model, batches=batches)",
        )
    batch = median_batch(batches)
    alike: dict[_Shape, list[Site]] = {}
    for site in selected_sites(anatomy, constraints.sites).sites:
        alike.setdefault(_shape(model, site), []).append(site)
    (whole,) = fastest_ms([model], batch=batch, rows=ROWS, seconds=0.0)
    # A pair of models runs 8 times or more.
    levels = max(2, min(_LEVELS, int(_MOST_SECONDS / (8 * whole / 1000 * len(alike)))))
    share = _MOST_SECONDS / (2 * levels * len(alike))
    seconds = max(_SECONDS, min(_RUNS * whole / 1000, share))
    table: dict[_Shape, tuple[list[int], list[float]]] = {}
    for shape, sites in alike.items():
        slots: list[int] = []
        saved: list[float] = []
        for number, remove in _levels(sites, levels, constraints=constraints):
            smaller = _twin(model)
            cut(smaller, anatomy, remove=remove, pad=constraints.gqa == "pad")
            slow, fast = fastest_ms([model, smaller], batch=batch, rows=ROWS, seconds=seconds)
            whole = min(whole, slow)
            slots.append(number)
            saved.append((slow - fast) / len(sites))
        level = np.maximum(isotonic_regression(saved, increasing=False).x, 0.0).tolist()
        table[shape] = ([*slots, len(sites[0].slots)], [*level, 0.0])
    return _as_prices(model, table, alike, whole=whole, batch=batch, constraints=constraints)


def _as_prices(
    model: PreTrainedModel,
    table: Mapping[_Shape, tuple[list[int], list[float]]],
    alike: Mapping[_Shape, list[Site]],
    *,
    whole: float,
    batch: Batch,
    constraints: Constraints,
) -> Prices:
    def saved(site: Site, kept: tuple[int, ...]) -> float:
        if kept == site.heads:
            return 0.0
        slots = site.after(kept, pad=constraints.gqa == "pad").slots
        return float(np.interp(len(slots), *table[_shape(model, site)]))

    tokens = batch.num_tokens // batch.num_rows
    note = {
        "measured": f"milliseconds of a forward of the whole model, {ROWS} rows of {tokens} tokens on {model.device.type}; "
        "what an attention saves, from all of one shape cut alike",
        "table": [
            {"attentions": [str(site.id) for site in sites], "heads": heads, "saved_by_each": each}
            for sites, (heads, each) in ((alike[shape], row) for shape, row in table.items())
        ],
    }
    return Prices(whole, saved, note)


def _levels(
    sites: Sequence[Site], count: int, *, constraints: Constraints
) -> Iterator[tuple[int, list[HeadId]]]:
    """Yield numbers of heads that take room, the smallest first, and what goes from all of ``sites`` to get there."""
    free = Constraints(min_heads=0, gqa=constraints.gqa)
    by_slots: list[dict[int, tuple[HeadId, ...]]] = []
    for site in sites:
        flat = {HeadId(site.id, head): 0.0 for head in site.heads}
        by_slots.append(
            {
                len(site.after(option.kept, pad=free.gqa == "pad").slots): option.heads
                for option in options(site, flat, protected=(), constraints=free)
            }
        )
    shared = sorted(set.intersection(*map(set, by_slots)) - {len(sites[0].slots)})
    places = np.linspace(0, len(shared) - 1, min(count, len(shared))).round().astype(int)
    for place in places.tolist():
        number = shared[place]
        yield number, [head for found in by_slots for head in found[number]]


def _shape(model: PreTrainedModel, site: Site) -> _Shape:
    """Return what attentions have in common that take equally long."""
    weights = (tuple(model.get_parameter(item.parameter).shape) for item in site.slices)
    return (
        site.id.stack,
        site.id.kind,
        site.execution,
        site.when_empty,
        len(site.heads),
        len(site.slots),
        *weights,
    )


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that shares its tensors with the model: cutting puts smaller ones in their place."""
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, shared)
