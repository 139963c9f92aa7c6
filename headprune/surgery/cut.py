"""Slice the Q/K/V/O weights in place. Exact: what stays is bit for bit what it was."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy, Site, Slice
from headprune.anatomy.clone import original_head_counts, pruning_record
from headprune.errors import PlanError
from headprune.heads import HeadId


def cut(model: PreTrainedModel, anatomy: Anatomy, *, remove: Collection[HeadId]) -> Anatomy:
    """Remove heads from ``model`` in place.

    dtype, device, ``requires_grad``, the random state and every other tensor stay as they were. What was removed is noted in
    ``model.config.headprune``, so that pruning again and saving know of it.

    Args:
        model: The model; changed in place.
        anatomy: Its anatomy.
        remove: Heads that are still there.

    Returns:
        The anatomy of the pruned model.

    Raises:
        PlanError: A head is not there, a site would be left with heads that its attention can't run, or a parameter is shared.
            Nothing was changed then.
    """
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
        if not site.is_lawful(kept[site.id]):
            raise PlanError(
                f"{site.id} can't run with heads {list(kept[site.id])} alone: {_reason(site, kept[site.id])}",
                where="plan",
                hint="remove whole key/value groups, or as many query heads from each (--gqa group, --gqa even)",
            )
    _refuse_shared_parameters(model, changed)
    for site in changed:
        for item in site.slices:
            _cut_parameter(model, item, present=site.heads, kept=kept[site.id])
        for attribute in site.attributes:
            value = site.attribute_value(attribute.kind, kept[site.id])
            setattr(model.get_submodule(attribute.module), attribute.name, value)
    _note(model, remove)
    return Anatomy(
        anatomy.model_type,
        tuple(replace(site, heads=kept[site.id]) for site in anatomy.sites),
        anatomy.refused,
    )


def _cut_parameter(
    model: nn.Module, item: Slice, *, present: Collection[int], kept: Collection[int]
) -> None:
    indices = item.kept_indices(present=present, kept=kept)
    path, _, name = item.parameter.rpartition(".")
    module = model.get_submodule(path)
    old: Tensor = module.get_parameter(name)
    if len(indices) == old.shape[item.dim]:
        return
    chosen = torch.tensor(indices, dtype=torch.long, device=old.device)
    new = nn.Parameter(
        old.detach().index_select(item.dim, chosen).contiguous(), requires_grad=old.requires_grad
    )
    setattr(module, name, new)
    if name == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = new.shape
    elif name == "weight" and isinstance(module, Conv1D):
        module.nx, module.nf = new.shape


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
                    hint=f"protect the site: --protect {site.id}",
                )


def _note(model: PreTrainedModel, remove: Collection[HeadId]) -> None:
    record = pruning_record(model.config)
    removed = {HeadId.parse(name) for name in record.get("removed", ())} | set(remove)
    model.config.headprune = {
        "format": 1,
        **record,
        "original": original_head_counts(model.config),
        "removed": [str(head) for head in sorted(removed)],
    }


def _reason(site: Site, kept: Collection[int]) -> str:
    if len(kept) < site.min_heads:
        return f"it needs at least {site.min_heads}"
    sizes = [len(members) for members in site.groups(kept).values()]
    return f"its key/value heads would serve {sizes} query heads"
