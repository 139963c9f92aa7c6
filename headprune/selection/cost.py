"""What a head costs: parameters, arithmetic, and room in the key/value cache."""

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import nn

from headprune.anatomy import Anatomy, Site
from headprune.anatomy.trace import takes_cache
from headprune.heads import HeadId

# The context at which the arithmetic of attention itself is counted.
CONTEXT = 512


class Savings(NamedTuple):
    """What goes with some heads.

    Args:
        parameters: Numbers in weights and biases.
        flops_per_token: Floating-point operations per token with ``CONTEXT`` tokens of context: two for each weight of a
            projection, and ``4 * head_dim * context`` for each head's logits and weighted sum.
        kv_cache_bytes_per_token: Bytes of keys and values that generation keeps per token; 0 for models without a cache.
    """

    parameters: int
    flops_per_token: int
    kv_cache_bytes_per_token: int

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name, with the context that the arithmetic is counted at."""
        return {**self._asdict(), "context": CONTEXT}


def savings(
    model: nn.Module, anatomy: Anatomy, *, remove: Collection[HeadId], pad: bool = False
) -> Savings:
    """Return what goes when ``remove`` goes, from the shapes alone."""
    kept = anatomy.kept_per_site(remove)
    total = Savings(0, 0, 0)
    for site in anatomy.sites:
        after = site.after(kept[site.id], pad=pad)
        numbers, weights = _numbers(model, site, after)
        runs_smaller = after.execution_with(after.heads) == "native"
        slots = len(site.slots) - len(after.slots)
        attention = 4 * site.head_dim * CONTEXT * slots if runs_smaller else 0
        cache = 0
        if runs_smaller and site.id.kind != "cross" and takes_cache(model):
            groups = _key_value_heads(site) - _key_value_heads(after)
            cache = 2 * groups * site.head_dim * next(model.parameters()).element_size()
        total = Savings(
            total.parameters + numbers,
            total.flops_per_token + 2 * weights + attention,
            total.kv_cache_bytes_per_token + cache,
        )
    return total


def parameters_removed(
    model: nn.Module, anatomy: Anatomy, *, remove: Collection[HeadId], pad: bool = False
) -> int:
    """Return how many parameters go when ``remove`` goes."""
    return savings(model, anatomy, remove=remove, pad=pad).parameters


def _numbers(model: nn.Module, before: Site, after: Site) -> tuple[int, int]:
    """Return how many numbers of all parameters, and of the weights of linear layers, go."""
    numbers = weights = 0
    for item in after.cut_slices():
        parameter = model.get_parameter(item.parameter)
        size = parameter.shape[item.dim]
        gone = size - item.size(after.slots) if after != before else 0
        going = gone * (parameter.numel() // size) if size else 0
        numbers += going
        multiplied = item.side is not None and item.parameter.endswith(".weight")
        # Unfolded weights are multiplied in full size.
        if multiplied and after.execution_with(after.heads) != "unfolded":
            weights += going
    return numbers, weights


def _key_value_heads(site: Site) -> int:
    return len(site.groups(site.slots)) if site.num_key_value_heads > 1 else min(1, len(site.slots))
