"""What of a model can be pruned, and how, proven: its tiny clone is masked and cut, and both must say the same."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import (
    Anatomy,
    Attribute,
    Execution,
    Pattern,
    Probe,
    Site,
    attentions_with_cache,
    locate,
    probe,
    run_tower,
)
from headprune.anatomy.clone import quiet
from headprune.anatomy.exceptions import OFTEN_SOMETHING_ELSE, REASONS
from headprune.errors import UnsupportedError
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.surgery import cut

# fp32 rounding of a small model, relative to its largest output (or 1); heads of the clone move them by 0.1 and more.
_TOLERANCE = 5e-5
_LEAST_EFFECT = 1e-3

Way = Callable[[Pattern], Pattern]


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of ``model``, after proving on its tiny clone that it can be pruned.

    The proof: an uneven plan is masked and cut on the clone, and all outputs agree. The way that saves most is taken of those
    that pass; an attention that passes in no way is refused by name. Whether a layer may lose all its heads is tried in the
    same way. The model itself is not run, and the caller's random state is left alone.

    Raises:
        UnsupportedError: No heads can be found, or cutting them is not the same as masking them.
    """
    with quiet():
        found = probe(model)
        patterns, refused = _proven(found)
    if not patterns:
        model_type = model.config.model_type
        raise UnsupportedError(
            f"model type {model_type!r} is not supported: "
            + (REASONS.get(model_type) or next(iter(refused.values()))),
            where=f"{type(model).__name__} (config.json: model_type)",
            hint="docs/support.md lists what is supported",
        )
    return locate(model, patterns, refused)


def _proven(found: Probe) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the patterns with the way in which each can be cut, and the reasons for those that can't be."""
    refused = dict(found.refused)
    for way in _ways():
        patterns = tuple(way(pattern) for pattern in found.patterns)
        if _difference(found, patterns, _uneven) <= _TOLERANCE:
            break
    else:
        patterns = tuple(_one_by_one(found, refused))
        if patterns and _difference(found, patterns, _uneven) > _TOLERANCE:
            reason = "cutting its attentions together is not the same as masking them"
            return (), {**refused, **{pattern.path: reason for pattern in patterns}}
    return _emptied(found, patterns), refused


def _ways() -> Iterator[Way]:
    """Yield the ways to cut, from the one that saves most to the one that nearly always works."""

    def where_called(way: Way) -> Way:
        return lambda pattern: way(pattern) if pattern.called == "module" else _unfolded(pattern)

    yield from map(where_called, _ways_of_modules())


def _ways_of_modules() -> Iterator[Way]:
    def native(allowed: Callable[[Attribute], bool]) -> Way:
        return lambda pattern: replace(
            pattern,
            execution="native" if pattern.may_run_natively else "expanded",
            attributes=tuple(
                item for item in pattern.attributes if allowed(item) and pattern.may_run_natively
            ),
        )

    def plain(item: Attribute) -> bool:
        return not item.name.startswith("config.") and item.name not in OFTEN_SOMETHING_ELSE

    yield native(plain)
    yield native(lambda item: not item.name.startswith("config."))
    yield native(lambda item: item.name not in OFTEN_SOMETHING_ELSE)
    yield native(lambda item: True)
    yield lambda pattern: replace(pattern, execution="expanded", attributes=())
    yield _only_wholly_owned


def _only_wholly_owned(pattern: Pattern) -> Pattern:
    """Cut those linear layers alone whose every row belongs to some head: not tables of positions, used in part."""
    slices = tuple(item for item in pattern.slices if all(run.owners for run in item.runs))
    return replace(pattern, execution="expanded", attributes=(), slices=slices)


def _unfolded(pattern: Pattern) -> Pattern:
    """Cut linear layers and what the attention itself owns: other tables may be read by other layers."""
    slices = tuple(
        item
        for item in pattern.slices
        if item.side is not None or item.parameter.rpartition(".")[0] == pattern.path
    )
    return replace(pattern, execution="unfolded", attributes=(), slices=slices)


def _one_by_one(found: Probe, refused: dict[str, str]) -> Iterator[Pattern]:
    """Find for each class of attentions a way of its own."""
    for members in _by_class(found.patterns):
        best = float("inf")
        for way in (*_ways(), _unfolded):
            patterns = tuple(way(pattern) for pattern in members)
            best = min(best, _difference(found, patterns, _uneven))
            if best <= _TOLERANCE:
                yield from patterns
                break
        else:
            reason = f"cutting heads of a small copy is not the same as masking them ({best:.1e})"
            refused |= {pattern.path: reason for pattern in members}


def _by_class(patterns: Sequence[Pattern]) -> list[list[Pattern]]:
    found: dict[tuple[str, str], list[Pattern]] = {}
    for pattern in patterns:
        stack = pattern.path.partition(".0.")[0]
        found.setdefault((stack, pattern.path.rpartition(".")[2]), []).append(pattern)
    return list(found.values())


def _emptied(found: Probe, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """Try whether a layer may lose all its heads, and how it runs then."""
    # Without heads these go on in full width, all zeros: a cache whose layer holds no number says that it has seen no token
    # (transformers' DynamicLayer.get_seq_length), and positions are counted by what it says.
    caching = attentions_with_cache(found)

    def settled_as(execution: Execution | None, members: Sequence[Pattern]) -> tuple[Pattern, ...]:
        def own(pattern: Pattern) -> Execution | None:
            if execution and pattern.execution == "unfolded":
                return "unfolded"
            return "expanded" if execution and pattern.path in caching else execution

        return tuple(replace(pattern, when_empty=own(pattern)) for pattern in members)

    def trial(execution: Execution, members: Sequence[Pattern]) -> bool:
        return _difference(found, settled_as(execution, members), _first_of_all) <= _TOLERANCE

    result: list[Pattern] = []
    for members in (patterns, *_by_class(patterns)):
        expanded = any(pattern.execution == "expanded" for pattern in members)
        executions: tuple[Execution, ...] = ("expanded",) if expanded else ("native", "expanded")
        passed = next((e for e in executions if trial(e, members)), None)
        settled = settled_as(passed, members)
        if members is patterns and passed is not None:
            return settled
        result += settled if members is not patterns else ()
    return tuple(result)


def _uneven(anatomy: Anatomy) -> set[HeadId]:
    """Return a plan that leaves different numbers of heads: one head of each group, or one whole group.

    Lawful for any number of key/value heads.
    """
    removed: set[HeadId] = set()
    for index, site in enumerate(anatomy.sites):
        groups = list(site.groups(site.heads).values())
        if len(groups[0]) > 1 and (index % 2 == 0 or len(groups) == 1):
            gone = [group[-1] for group in groups]
        else:
            gone = list(groups[index % len(groups)]) if len(groups) > 1 else []
        removed |= {HeadId(site.id, head) for head in gone}
    return removed


def _first_of_all(anatomy: Anatomy) -> set[HeadId]:
    """Return a plan that takes every head of the first attention of each class."""
    first: dict[tuple[str, str], Site] = {}
    for site in anatomy.sites:
        first.setdefault((site.id.stack, site.id.kind), site)
    return {HeadId(site.id, head) for site in first.values() for head in site.heads}


def _difference(
    found: Probe, patterns: Sequence[Pattern], plan: Callable[[Anatomy], set[HeadId]]
) -> float:
    """Return the largest difference between a masked and a cut clone; infinite where that says nothing or doesn't run."""
    clone = copy.deepcopy(found.clone)
    anatomy = locate(clone, patterns, {})
    remove = plan(anatomy)
    mask = torch.tensor([float(head not in remove) for head in anatomy.heads])
    plain = [tensor for tower in found.towers for tensor in run_tower(clone, tower)]
    try:
        with gated(clone, anatomy, gates=mask):
            masked = [tensor for tower in found.towers for tensor in run_tower(clone, tower)]
        cut(clone, anatomy, remove=remove)
        pruned = [tensor for tower in found.towers for tensor in run_tower(clone, tower)]
    except Exception:  # noqa: BLE001 - a forward that doesn't fit its weights raises what it likes
        return float("inf")
    if remove and _distance(plain, masked) < _LEAST_EFFECT:
        return float("inf")
    return _distance(masked, pruned)


def _distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    if [one.shape for one in ones] != [other.shape for other in others]:
        return float("inf")
    worst = 0.0
    for one, other in zip(ones, others, strict=True):
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return float("inf")
        if bool(finite.any()):
            scale = max(1.0, float(one[finite].abs().max()))
            worst = max(worst, float((one - other)[finite].abs().max()) / scale)
    return worst
