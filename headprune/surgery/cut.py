"""Slice the Q/K/V/O weights in place. Exact: what stays is bit for bit what it was."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import original_head_counts, pruning_record
from headprune.anatomy.sites import Anatomy, Site, Slice
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.placement import refuse_offloaded
from headprune.surgery.head_settings import named_heads_after, rename_heads, update_layer_counts
from headprune.surgery.modeling_headprune import (
    keep_width,
    replace_parameter,
    set_attribute,
    unfold,
)


def cut(
    model: PreTrainedModel, anatomy: Anatomy, *, remove: Collection[HeadId], pad: bool = False
) -> Anatomy:
    """Remove heads from ``model`` in place.

    dtype, device, ``requires_grad``, the random state and every other tensor stay as they were (a parameter that is left empty
    is frozen: optimisers fail on those). What was removed is noted in ``model.config.headprune``, so that pruning again and
    saving know of it. Heads that the model's settings name by their index are named by their new one, and the model is no
    longer called by the path of the whole one: adapters trained on it would load there.

    Args:
        model: The model; changed in place.
        anatomy: Its anatomy.
        remove: Heads that are still there.
        pad: Where key/value groups would be left uneven, keep the rows of some removed heads as dead weight: zero rows in Q,
            zero columns in W_O. Exact, and stock attention can run it.

    Returns:
        The anatomy of the pruned model.

    Raises:
        PlanError: A head is not there, a site would be left with heads that its attention can't run, a parameter is shared, or
            none of the heads is left that the model's settings name. Nothing was changed then.
        UnsupportedError: Weights wait in CPU memory or on disk until their layer runs.
    """
    refuse_offloaded(model)
    unknown = set(remove) - set(anatomy.heads)
    if unknown:
        raise PlanError(
            f"the model has no head {min(unknown)}",
            where="plan",
            hint="make the plan from scores of this very model",
        )
    kept = anatomy.kept_per_site(remove)
    changed = [site for site in anatomy.sites if kept[site.id] != site.heads]
    for site in changed:
        _refuse_unlawful(site, kept[site.id], pad=pad)
    after = {site.id: site.after(kept[site.id], pad=pad) for site in changed}
    _refuse_shared_parameters(model, changed)
    sites = tuple(after.get(site.id, site) for site in anatomy.sites)
    renamed = named_heads_after(model, anatomy.sites, sites)
    for site in changed:
        _cut_site(model, site, after[site.id])
    rename_heads(renamed)
    _note(model, remove, sites)
    update_layer_counts(model.config, sites)
    if changed:
        _forget_path(model)
    return Anatomy(anatomy.model_type, sites, anatomy.refused)


def _refuse_unlawful(site: Site, kept: tuple[int, ...], *, pad: bool) -> None:
    if site.is_lawful(site.padded(kept) if pad else kept):
        return
    hint = f"keep a head of it (`min_heads`: {site.min_heads})"
    if len(kept) >= site.min_heads:
        hint = "remove whole key/value groups, or as many heads from each, or pad (`gqa`: group, even, pad)"
    raise PlanError(
        f"{site.id} can't run with heads {list(kept)} alone: {_reason(site, kept)}",
        where="plan",
        hint=hint,
    )


def _cut_site(model: PreTrainedModel, before: Site, after: Site) -> None:
    for item in after.cut_slices():
        old = model.get_parameter(item.parameter).detach()
        new = cut_tensor(old, item, before=before, after=after)
        if new is not old:
            path, _, leaf = item.parameter.rpartition(".")
            replace_parameter(model.get_submodule(path), leaf, new)
    if after.execution_with(after.heads) == "native":
        for attribute in after.attributes:
            number = after.attribute_value(attribute.kind, after.slots)
            set_attribute(model.get_submodule(attribute.module), attribute.name, number)
    for path, spread in spreads(before, after).items():
        owner, _, leaf = path.rpartition(".")
        keep_width(model.get_submodule(owner), leaf, **spread)
    if full_size := full_sizes(before, after):
        unfold(model.get_submodule(after.home), full_size)


def cut_tensor(tensor: Tensor, item: Slice, *, before: Site, after: Site) -> Tensor:
    """Return what is left of a parameter, the same bits; the tensor itself where nothing changes."""
    kept = item.kept_indices(present=before.slots, kept=after.slots)
    new = tensor
    if len(kept) != tensor.shape[item.dim]:
        indices = torch.tensor(kept, dtype=torch.long, device=tensor.device)
        new = tensor.index_select(item.dim, indices).contiguous()
    dead = _dead(item, after)
    if dead and dead != _dead(item, before):
        new = new.clone() if new is tensor else new
        new.index_fill_(item.dim, torch.tensor(dead, device=tensor.device), 0)
    return new


def _dead(item: Slice, site: Site) -> list[int]:
    """Return the indices, among those of the slots, that belong to padding alone."""
    if not site.padding:
        return []
    everyone = item.kept_indices(present=site.slots, kept=site.slots)
    alive = set(item.kept_indices(present=site.slots, kept=site.heads))
    return [index for index in everyone if index not in alive]


def dead_indices(site: Site) -> Iterator[tuple[Slice, list[int]]]:
    """Yield the dimensions that hold dead weight of padded heads, with its indices there."""
    for item in site.cut_slices():
        if dead := _dead(item, site):
            yield item, dead


def spreads(before: Site, after: Site) -> dict[str, dict[str, Any]]:
    """Return, by linear layer, how it deals with activations wider than itself (see ``keep_width``)."""
    if after.execution_with(after.heads) != "zero_padded":
        return {}
    # A site that runs natively and loses its last head keeps the width it had just before.
    width = range(before.num_heads) if after.execution == "zero_padded" else before.slots
    return {
        item.parameter.removesuffix(".weight"): {
            "side": item.side,
            "size": item.size(width),
            "kept": _ranges(item.kept_indices(present=width, kept=after.slots)),
        }
        for item in after.cut_slices()
        if item.parameter.endswith(".weight")
    }


def full_sizes(before: Site, after: Site) -> dict[str, dict[str, Any]]:
    """Return, by parameter below the site's home, how it is seen while the attention runs (see ``unfold``)."""
    if after.execution_with(after.heads) != "full_size_weights":
        return {}
    every = range(before.num_heads)
    inside = f"{after.home}." if after.home else ""
    return {
        item.parameter.removeprefix(inside): {
            "dim": item.dim,
            "size": item.size(every),
            "kept": _ranges(item.kept_indices(present=every, kept=after.slots)),
        }
        for item in after.cut_slices()
    }


def _ranges(indices: Sequence[int]) -> list[list[int]]:
    """Return sorted indices as [start, stop] pairs."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index, index + 1])
    return ranges


def _refuse_shared_parameters(model: nn.Module, sites: Collection[Site]) -> None:
    names: dict[Tensor, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).add(name)
    for site in sites:
        for item in site.slices:
            shared = names[model.get_parameter(item.parameter)] - {item.parameter}
            if shared:
                raise PlanError(
                    f"{item.parameter} is the same tensor as {min(shared)}, so its rows can't be cut for one of them",
                    where=str(site.id),
                    hint=f"protect the site (`protect`: {site.id})",
                )


def _note(model: PreTrainedModel, remove: Collection[HeadId], sites: Collection[Site]) -> None:
    record = pruning_record(model.config)
    removed = {HeadId.parse(name) for name in record.get("removed", ())} | set(remove)
    padding = sorted(HeadId(site.id, head) for site in sites for head in site.padding)
    model.config.headprune = {
        "format": 1,
        **{name: value for name, value in record.items() if name != "padding"},
        "original": original_head_counts(model.config),
        "removed": [str(head) for head in sorted(removed)],
        **({"padding": [str(head) for head in padding]} if padding else {}),
    }


def _forget_path(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.name_or_path = ""
            module.config.name_or_path = ""


def _reason(site: Site, kept: Collection[int]) -> str:
    if len(kept) < site.min_heads:
        return f"it needs at least {site.min_heads}"
    sizes = [len(members) for members in site.groups(kept).values()]
    return f"its key/value heads would serve {sizes} query heads"
