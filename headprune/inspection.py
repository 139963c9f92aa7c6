"""What of a model can be pruned, and by which method, proven: its tiny clone is masked and cut, and both must say the same."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.anatomy.exceptions import OFTEN_SOMETHING_ELSE
from headprune.anatomy.locate import locate, template
from headprune.anatomy.ownership import Pattern
from headprune.anatomy.probe import Probe, attentions_with_cache, probe, run_tower, unsupported
from headprune.anatomy.sites import Anatomy, Execution, Site
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.surgery.cut import cut

# fp32 rounding of a small model, relative to its largest output (or 1); heads of the clone move them by 0.1 and more.
_TOLERANCE = 5e-5
_LEAST_EFFECT = 1e-3
_NATIVE = 4  # of the methods, those that change nothing but numbers of heads

Method = Callable[[Pattern], Pattern]
"""Settles how an attention is cut, and how it runs then."""


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of ``model``, after proving on its tiny clone that it can be pruned.

    The proof: an uneven plan is masked and cut on the clone, and all outputs agree. The method that saves most is taken of those
    that pass; an attention that passes with none is refused by name. Whether a layer may lose all its heads is tried in the
    same way. The model itself is not run, and the caller's random state is left alone.

    Raises:
        UnsupportedError: No heads can be found, or cutting them is not the same as masking them.
    """
    with quiet():
        probed = probe(model)
        patterns, refused = _proven(probed)
    if not patterns:
        raise unsupported(model, refused)
    return locate(model, patterns, refused)


def _proven(probed: Probe) -> tuple[tuple[Pattern, ...], dict[str, str]]:
    """Return the patterns, each with the method by which it can be cut, and the reasons for those that can't be."""
    refused = dict(probed.refused)
    patterns, _ = _settled(probed, probed.patterns, _methods())
    if patterns is None:
        patterns = tuple(_class_by_class(probed, refused))
        if patterns and _difference(probed, patterns, _uneven) > _TOLERANCE:
            reason = "cutting its attentions together is not the same as masking them"
            return (), {**refused, **{pattern.path: reason for pattern in patterns}}
    return _emptied(probed, patterns), refused


def _settled(
    probed: Probe, patterns: Sequence[Pattern], methods: Iterable[Method]
) -> tuple[tuple[Pattern, ...] | None, float]:
    """Return patterns cut by the first method that passes (None: none does), and the least difference that was seen."""
    least = float("inf")
    for method in methods:
        settled = tuple(map(method, patterns))
        least = min(least, _difference(probed, settled, _uneven))
        if least <= _TOLERANCE:
            return settled, least
    return None, least


def _class_by_class(probed: Probe, refused: dict[str, str]) -> Iterator[Pattern]:
    """Find a method for each class of attentions, or for each member where they can't all run with fewer heads.

    Those that pass by no method are added to ``refused``.
    """
    for members in _by_class(probed.patterns):
        together, _ = _settled(probed, members, _methods()[:_NATIVE])
        if together is not None:
            yield from together
            continue
        for pattern in members:
            settled, least = _settled(probed, [pattern], (*_methods(), _full_size_weights))
            if settled is None:
                reason = "cutting heads of a small copy is not the same as masking them"
                refused[pattern.path] = f"{reason} ({least:.1e})"
            yield from settled or ()


def _by_class(patterns: Sequence[Pattern]) -> list[list[Pattern]]:
    """Return patterns in groups of one class whose paths differ in numbers alone: those of one stack of layers."""
    groups: dict[tuple[str, str], list[Pattern]] = {}
    for pattern in patterns:
        groups.setdefault((template(pattern.path), pattern.class_name), []).append(pattern)
    return list(groups.values())


def _methods() -> list[Method]:
    """Return the methods, from the one that saves most to the one that nearly always works; the first few are native."""
    choices = ((False, False), (False, True), (True, False), (True, True))
    native: list[Method] = [partial(_native, config=c, ambiguous=other) for c, other in choices]
    methods = (*native, _zero_padded, _only_wholly_owned)
    return [partial(_where_called, method=method) for method in methods]


def _where_called(pattern: Pattern, *, method: Method) -> Pattern:
    return method(pattern) if pattern.called == "module" else _full_size_weights(pattern)


def _native(pattern: Pattern, *, config: bool, ambiguous: bool) -> Pattern:
    """Let it run with fewer heads.

    Args:
        pattern: The attention.
        config: Whether integers change that it reads from its config.
        ambiguous: Whether integers change whose names often stand for something else.
    """
    if not pattern.may_run_natively:
        return _zero_padded(pattern)
    attributes = tuple(
        item
        for item in pattern.attributes
        if (config or not item.name.startswith("config."))
        and (ambiguous or item.name not in OFTEN_SOMETHING_ELSE)
    )
    return replace(pattern, execution="native", attributes=attributes)


def _zero_padded(pattern: Pattern) -> Pattern:
    return replace(pattern, execution="zero_padded", attributes=())


def _only_wholly_owned(pattern: Pattern) -> Pattern:
    """Cut those linear layers alone whose every row belongs to some head: not tables of positions, used in part."""
    slices = tuple(item for item in pattern.slices if all(run.owners for run in item.runs))
    return replace(_zero_padded(pattern), slices=slices)


def _full_size_weights(pattern: Pattern) -> Pattern:
    """Cut linear layers and what the attention itself owns: other tables may be read by other layers."""
    slices = tuple(
        item
        for item in pattern.slices
        if item.side is not None or item.parameter.rpartition(".")[0] == pattern.path
    )
    return replace(pattern, execution="full_size_weights", attributes=(), slices=slices)


def _emptied(probed: Probe, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """Try whether a layer may lose all its heads, and how it runs then: all classes together, else class by class."""
    # Without heads these go on in full width, all zeros: a cache whose layer holds no number says that it has seen no token
    # (transformers' DynamicLayer.get_seq_length), and positions are counted by what it says.
    caching = attentions_with_cache(probed)

    def when_empty(pattern: Pattern, execution: Execution) -> Execution:
        if pattern.execution == "full_size_weights":
            return pattern.execution
        return "zero_padded" if pattern.path in caching else execution

    def tried(members: Sequence[Pattern]) -> tuple[Pattern, ...] | None:
        is_padded = any(pattern.execution == "zero_padded" for pattern in members)
        executions: tuple[Execution, ...] = (
            ("zero_padded",) if is_padded else ("native", "zero_padded")
        )
        for execution in executions:
            settled = tuple(replace(p, when_empty=when_empty(p, execution)) for p in members)
            if _difference(probed, settled, _first_of_all) <= _TOLERANCE:
                return settled
        return None

    together = tried(patterns)
    if together is not None:
        return together
    return tuple(p for members in _by_class(patterns) for p in tried(members) or members)


def _uneven(anatomy: Anatomy) -> set[HeadId]:
    """Return a plan that leaves different numbers of heads: one head of each group, or one whole group.

    Lawful for any number of key/value heads.
    """
    removed: set[HeadId] = set()
    for index, site in enumerate(anatomy.sites):
        groups = list(site.groups(site.heads).values())
        if len(groups[0]) > 1 and (index % 2 == 0 or len(groups) == 1):
            heads = [group[-1] for group in groups]
        else:
            heads = list(groups[index % len(groups)]) if len(groups) > 1 else []
        removed |= {HeadId(site.id, head) for head in heads}
    return removed


def _first_of_all(anatomy: Anatomy) -> set[HeadId]:
    """Return a plan that takes every head of the first attention of each class."""
    first: dict[tuple[str, str], Site] = {}
    for site in anatomy.sites:
        first.setdefault((site.id.stack, site.id.kind), site)
    return {HeadId(site.id, head) for site in first.values() for head in site.heads}


def _difference(
    probed: Probe, patterns: Sequence[Pattern], plan: Callable[[Anatomy], set[HeadId]]
) -> float:
    """Return the largest difference between a masked and a cut clone; infinite where that says nothing or doesn't run."""
    clone = copy.deepcopy(probed.clone)
    anatomy = locate(clone, patterns, {})
    remove = plan(anatomy)
    mask = torch.tensor([float(head not in remove) for head in anatomy.heads])
    plain = [tensor for tower in probed.towers for tensor in run_tower(clone, tower)]
    try:
        with gated(clone, anatomy, gates=mask):
            masked = [tensor for tower in probed.towers for tensor in run_tower(clone, tower)]
        cut(clone, anatomy, remove=remove)
        pruned = [tensor for tower in probed.towers for tensor in run_tower(clone, tower)]
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
