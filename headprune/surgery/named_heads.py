"""Heads that a model's settings name by their index: Whisper tells the time of a word by its ``alignment_heads``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.errors import PlanError
from headprune.heads import HeadId

_NAME = "alignment_heads"  # [layer, head] of the decoder's cross-attentions
_AS_LOADED = "_original_object_hash"


def named_heads(model: PreTrainedModel, anatomy: Anatomy) -> tuple[HeadId, ...]:
    """Return the heads that the settings of ``model`` name, by their original index."""
    return tuple(
        HeadId(site.id, head)
        for settings in _settings(model)
        for layer, index in getattr(settings, _NAME)
        for site in anatomy.sites
        if site.id.kind == "cross" and site.id.layer == layer
        for head in _shown(site)[index : index + 1]
        if head in site.heads
    )


def named_heads_after(
    model: PreTrainedModel, before: Sequence[Site], after: Sequence[Site]
) -> list[tuple[Any, list[list[int]]]]:
    """Return each settings object that names heads, with the names that hold after the cut; nothing is changed.

    Raises:
        PlanError: No head that is named would be left.
    """
    found = []
    for settings in _settings(model):
        old = [list(pair) for pair in getattr(settings, _NAME)]
        new = list(_moved(old, _cross_attentions(before), _cross_attentions(after)))
        if old and not new:
            raise PlanError(
                f"every head that {_NAME} names would be removed, and words could be timed no more",
                where=f"generation_config.{_NAME}",
                hint="keep one of them (--protect), or delete that setting to do without the times of words",
            )
        found.append((settings, new))
    return found


def rename_heads(renamed: Sequence[tuple[Any, list[list[int]]]]) -> None:
    """Let settings name heads as :func:`named_heads_after` found."""
    for settings, pairs in renamed:
        is_as_loaded = getattr(settings, _AS_LOADED, None) == hash(settings)
        setattr(settings, _NAME, pairs)
        if (
            is_as_loaded
        ):  # transformers writes no settings that someone changed and that it deems unwise
            setattr(settings, _AS_LOADED, hash(settings))


def head_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of generation that name heads, as they are written."""
    settings = getattr(model, "generation_config", None)
    return {_NAME: getattr(settings, _NAME)} if getattr(settings, _NAME, None) else {}


def _settings(model: PreTrainedModel) -> Iterator[Any]:
    for settings in (getattr(model, "generation_config", None), model.config):
        if getattr(settings, _NAME, None):
            yield settings


def _cross_attentions(sites: Sequence[Site]) -> dict[int, Site]:
    return {site.id.layer: site for site in sites if site.id.kind == "cross"}


def _moved(
    pairs: Sequence[Sequence[int]], before: Mapping[int, Site], after: Mapping[int, Site]
) -> Iterator[list[int]]:
    for layer, index in pairs:
        if layer not in before:
            yield [layer, index]  # that attention can't be cut
            continue
        # An attention that runs with its full width shows all its heads, where they always were.
        rows = [_shown(site) for site in (before[layer], after[layer])]
        head = rows[0][index] if index < len(rows[0]) else None
        if head in after[layer].heads:
            yield [layer, rows[1].index(head)]


def _shown(site: Site) -> tuple[int, ...]:
    """Return the original index of each head in the attention weights."""
    is_native = site.execution_with(site.heads) == "native"
    return site.slots if is_native else tuple(range(site.num_heads))
