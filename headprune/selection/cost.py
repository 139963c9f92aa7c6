"""What a head costs."""

from collections.abc import Collection

from torch import nn

from headprune.anatomy import Anatomy
from headprune.heads import HeadId


def parameters_removed(model: nn.Module, anatomy: Anatomy, *, remove: Collection[HeadId]) -> int:
    """Return how many parameters go when ``remove`` goes, from the shapes alone."""
    kept = anatomy.kept_per_site(remove)
    total = 0
    for site in anatomy.sites:
        for item in site.slices:
            parameter = model.get_parameter(item.parameter)
            size = parameter.shape[item.dim]
            going = size - item.size(kept[site.id])
            total += going * (parameter.numel() // size) if size else 0
    return total
