"""What heads cost: parameters, arithmetic and key/value cache from shapes alone, latency from a table that is measured here."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.optimize import isotonic_regression
from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import EXPERT_COUNTS
from headprune.anatomy.sites import Anatomy, Site
from headprune.anatomy.trace import takes_cache
from headprune.batch import Batch
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.footprint import fastest_ms, median_batch
from headprune.heads import HeadId
from headprune.placement import count_parameters
from headprune.planning.constraints import Amount, selected_sites, target_of
from headprune.planning.units import menu_of
from headprune.surgery.cut import cut

# The context at which the arithmetic of attention itself is counted.
CONTEXT = 512
# Rows of a forward that is timed: with one row it is overhead that counts, not heads.
ROWS = 32
_LEVELS = 9
# For each of two models that take turns: so long, and so many runs, for only many runs average out noise; and the most for all.
_SECONDS = 0.5
_RUNS = 6
_MOST_SECONDS = 60.0

_Shape: TypeAlias = tuple[object, ...]
_Table: TypeAlias = dict[_Shape, tuple[list[int], list[float]]]


class Resources(NamedTuple):
    """What a model, or a part of it, takes.

    Args:
        parameters: Numbers in weights and biases.
        flops_per_token: Floating-point operations per token with ``CONTEXT`` tokens of context: two for each weight that a
            token is multiplied with (of experts the ones that a token is sent to), and ``4 * head_dim * context`` for each
            head's logits and weighted sum.
        kv_cache_bytes_per_token: Bytes of keys and values that generation keeps per token; 0 for models without a cache.
    """

    parameters: int
    flops_per_token: int
    kv_cache_bytes_per_token: int

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name, with the context that the arithmetic is counted at."""
        return {**self._asdict(), "context": CONTEXT}


@dataclass(frozen=True)
class CostModel:
    """The costs that a target limits.

    Args:
        whole: The unpruned model's resources.
        saved: ``saved(site, kept)``: what is saved when a site keeps only these heads, 0 or more; of several sites it adds up.
        note: The facts about it that a plan records.
    """

    whole: Amount
    saved: Callable[[Site, tuple[int, ...]], Amount]
    note: Mapping[str, Any] = field(default_factory=dict)

    def left(self, anatomy: Anatomy, removed: Collection[HeadId]) -> Amount:
        """Return what the model takes without these heads."""
        kept = anatomy.kept_per_site(removed)
        return self.whole - sum(self.saved(site, kept[site.id]) for site in anatomy.sites)


def cost_model(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    batches: Callable[[], Sequence[Batch]],
) -> CostModel | None:
    """Return what a plan's target is counted in; None where its budget is one of heads. Latency is measured on ``batches()``.

    Raises:
        PlanError: The model takes none of what is counted.
    """
    target = target_of(constraints)
    if target is None:
        return None
    if target.resource == "latency":
        return latency_costs(model, anatomy, constraints=constraints, batches=batches())
    index = ("parameters", "flops", "kv_cache").index(target.resource)
    whole = resources_of(model, anatomy)[index]
    if not whole:
        raise PlanError(
            "the model keeps no keys and values between tokens",
            where="`target_kv_cache`",
            hint="use another budget: `keep`, `heads`, `target_parameters`, `target_flops`",
        )
    pad = constraints.gqa == "pad"
    return CostModel(whole, lambda site, kept: _site_savings(model, site, kept, pad=pad)[index])


def resources_of(model: nn.Module, anatomy: Anatomy) -> Resources:
    """Return the unpruned model's resources of the kinds that pruning heads can save."""
    element, attention, cache = next(model.parameters()).element_size(), 0, 0
    for site in anatomy.sites:
        # All heads that there ever were, where the attention keeps its width.
        native = site.execution_with(site.heads) == "native"
        computed = site.slots if native else tuple(range(site.num_heads))
        attention += 4 * site.head_dim * CONTEXT * len(computed)
        if site.id.kind != "cross":
            cache += 2 * _key_value_heads(site, computed) * site.head_dim * element
    flops = 2 * _multiplied_weights(model) + attention
    return Resources(count_parameters(model), flops, cache if _keeps_cache(model) else 0)


def savings(
    model: nn.Module, anatomy: Anatomy, *, removed: Collection[HeadId], pad: bool = False
) -> Resources:
    """Return what removing heads saves, from the shapes alone; with ``pad``, groups are evened out with dead weight."""
    kept = anatomy.kept_per_site(removed)
    parts = [_site_savings(model, site, kept[site.id], pad=pad) for site in anatomy.sites]
    return Resources(*map(sum, zip(*parts, strict=True))) if parts else Resources(0, 0, 0)


def _site_savings(model: nn.Module, site: Site, kept: tuple[int, ...], *, pad: bool) -> Resources:
    after = site.after(kept, pad=pad)
    parameters, weights = _numbers_removed(model, site, after)
    attention = cache = 0
    if after.execution_with(after.heads) == "native":
        attention = 4 * site.head_dim * CONTEXT * (len(site.slots) - len(after.slots))
        if site.id.kind != "cross" and _keeps_cache(model):
            groups = _key_value_heads(site, site.slots) - _key_value_heads(after, after.slots)
            cache = 2 * groups * site.head_dim * next(model.parameters()).element_size()
    return Resources(parameters, 2 * weights + attention, cache)


def _numbers_removed(model: nn.Module, before: Site, after: Site) -> tuple[int, int]:
    """Return how many numbers of all parameters, and of the weights of linear layers, are removed."""
    numbers = weights = 0
    slots = frozenset(after.slots)
    for item in after.cut_slices() if after != before else ():
        parameter = model.get_parameter(item.parameter)
        size = parameter.shape[item.dim]
        removed = (size - item.size(slots)) * (parameter.numel() // size) if size else 0
        numbers += removed
        multiplied = item.side is not None and item.parameter.endswith(".weight")
        # Unfolded weights are multiplied in full size.
        if multiplied and after.execution_with(after.heads) != "full_size_weights":
            weights += removed
    return numbers, weights


def _multiplied_weights(model: nn.Module) -> int:
    weights = 0
    for module in model.modules():
        # Embeddings are looked up; an output layer that shares one is a module of its own.
        for parameter in () if isinstance(module, nn.Embedding) else module.parameters(False):
            added = parameter.dim() < 2 or parameter.shape[0] == 1
            weights += 0 if added else floor(parameter.numel() * _share_used(model, parameter))
    return weights


def _share_used(model: nn.Module, parameter: nn.Parameter) -> float:
    """Return the share of a parameter that one token uses: of experts in one tensor, the ones it is sent to."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    used = config_value(text, "num_experts_per_tok")
    if parameter.dim() < 3 or not isinstance(used, int):
        return 1.0
    counts = {config_value(text, name) for name in EXPERT_COUNTS}
    return min(1.0, used / parameter.shape[0]) if parameter.shape[0] in counts else 1.0


def _keeps_cache(model: nn.Module) -> bool:
    """Whether the model generates from a cache: encoders whose family has decoders say ``use_cache``, too."""
    config = getattr(model, "config", None)
    is_encoder = getattr(config, "is_decoder", None) is False
    return takes_cache(model) and (
        not is_encoder or bool(getattr(config, "is_encoder_decoder", False))
    )


def _key_value_heads(site: Site, slots: tuple[int, ...]) -> int:
    return len(site.groups(slots)) if site.num_key_value_heads > 1 else min(1, len(slots))


def latency_costs(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    constraints: Constraints,
    batches: Sequence[Batch],
) -> CostModel:
    """Return the latency of a forward of 32 rows of median length, and what each attention saves of it.

    A table as in Kwon et al. 2022, but of the whole model: all attentions of one shape are cut alike to a number of heads,
    the whole model is timed in turns with the uncut one, and the difference is divided among them. Up to 9 numbers of heads
    are measured, numbers in between are interpolated linearly; noise by which fewer heads would be slower is levelled out
    (isotonic regression).

    Args:
        model: The model.
        anatomy: Where its heads are.
        constraints: Which attentions lose heads, and whether groups are padded.
        batches: The data that is run.
    """
    if not batches:
        raise PlanError(
            "latency is measured on data, and there is none",
            where="`target_latency`",
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
    table: _Table = {}
    for shape, sites in alike.items():
        slots: list[int] = []
        saved: list[float] = []
        for number, removed in _levels(sites, levels, constraints=constraints):
            smaller = _twin(model)
            cut(smaller, anatomy, remove=removed, pad=constraints.gqa == "pad")
            slow, fast = fastest_ms([model, smaller], batch=batch, rows=ROWS, seconds=seconds)
            whole = min(whole, slow)
            slots.append(number)
            saved.append((slow - fast) / len(sites))
        level = np.maximum(isotonic_regression(saved, increasing=False).x, 0.0).tolist()
        table[shape] = ([*slots, len(sites[0].slots)], [*level, 0.0])
    return _from_table(model, table, alike, whole=whole, batch=batch, constraints=constraints)


def _from_table(
    model: PreTrainedModel,
    table: _Table,
    alike: Mapping[_Shape, list[Site]],
    *,
    whole: float,
    batch: Batch,
    constraints: Constraints,
) -> CostModel:
    def saved(site: Site, kept: tuple[int, ...]) -> float:
        if kept == site.heads:
            return 0.0
        slots = site.after(kept, pad=constraints.gqa == "pad").slots
        return float(np.interp(len(slots), *table[_shape(model, site)]))

    rows = f"{ROWS} rows of {batch.num_tokens // batch.num_rows} tokens on {model.device.type}"
    note = {
        "rows": rows,
        "measured": f"milliseconds of a forward of the whole model, {rows}; "
        "what an attention saves, from all of one shape cut alike",
        "table": [
            {"attentions": [str(site.id) for site in sites], "heads": heads, "saved_by_each": each}
            for sites, (heads, each) in ((alike[shape], row) for shape, row in table.items())
        ],
    }
    return CostModel(whole, saved, note)


def _levels(
    sites: Sequence[Site], count: int, *, constraints: Constraints
) -> Iterator[tuple[int, list[HeadId]]]:
    """Yield numbers of heads that take room, the smallest first, and what is removed from all of ``sites`` to get there."""
    free = Constraints(min_heads=0, gqa=constraints.gqa)
    by_slots: list[dict[int, tuple[HeadId, ...]]] = []
    for site in sites:
        flat = {HeadId(site.id, head): 0.0 for head in site.heads}
        by_slots.append(
            {
                len(site.after(option.kept[0], pad=free.gqa == "pad").slots): option.removed
                for option in menu_of(site, flat, protected=frozenset(), constraints=free).options
            }
        )
    shared = sorted(set.intersection(*map(set, by_slots)) - {len(sites[0].slots)})
    indices = np.linspace(0, len(shared) - 1, min(count, len(shared))).round().astype(int)
    for index in indices.tolist():
        number = shared[index]
        yield number, [head for removed in by_slots for head in removed[number]]


def _shape(model: PreTrainedModel, site: Site) -> _Shape:
    """Return what attentions have in common that take equally long."""
    weights = (tuple(model.get_parameter(item.parameter).shape) for item in site.slices)
    counts = (len(site.heads), len(site.slots))
    return (site.id.stack, site.id.kind, site.execution, site.when_empty, *counts, *weights)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that shares its tensors with the model: cutting puts smaller ones in their place."""
    tensors = (*model.parameters(), *model.buffers())
    shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return copy.deepcopy(model, shared)
