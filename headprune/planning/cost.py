"""What a head costs: parameters, arithmetic, and room in the key/value cache."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Any, Literal, NamedTuple

from torch import nn

from headprune.anatomy import Anatomy, Site
from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import EXPERT_COUNTS
from headprune.anatomy.trace import takes_cache
from headprune.errors import PlanError
from headprune.heads import HeadId
from headprune.placement import count_parameters
from headprune.planning.budget import Amount

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


@dataclass(frozen=True)
class Prices:
    """What a target is counted in.

    Args:
        whole: What the whole model takes before anything goes.
        saved: ``saved(site, kept)``: what goes when a site keeps only these heads, 0 or more; of several sites it adds up.
        note: What is to be noted of it in a plan.
    """

    whole: Amount
    saved: Callable[[Site, tuple[int, ...]], Amount]
    note: Mapping[str, Any] = field(default_factory=dict)


def counted(
    model: nn.Module,
    anatomy: Anatomy,
    *,
    resource: Literal["parameters", "flops", "kv_cache"],
    pad: bool = False,
) -> Prices:
    """Return what a resource is counted in, from the shapes alone.

    Whole-model FLOPs are two for each weight that a token is multiplied with (of experts those that a token is sent to) and
    ``4 * head_dim * context`` for each head of the attentions that are found.

    Raises:
        PlanError: The model takes none of it.
    """
    place = ("parameters", "flops", "kv_cache").index(resource)
    whole = whole_of(model, anatomy)[place]
    if not whole:
        raise PlanError(
            "the model keeps no keys and values between tokens",
            where="--target-kv-cache",
            hint="use another budget: --keep, --heads, --target-parameters, --target-flops",
        )
    return Prices(whole, lambda site, kept: _site_savings(model, site, kept, pad=pad)[place])


def whole_of(model: nn.Module, anatomy: Anatomy) -> Savings:
    """Return what the whole model takes, in what goes with heads."""
    return Savings(
        _all_numbers(model, anatomy), _all_flops(model, anatomy), _all_cache(model, anatomy)
    )


def savings(
    model: nn.Module, anatomy: Anatomy, *, remove: Collection[HeadId], pad: bool = False
) -> Savings:
    """Return what goes when ``remove`` goes, from the shapes alone."""
    kept = anatomy.kept_per_site(remove)
    parts = [_site_savings(model, site, kept[site.id], pad=pad) for site in anatomy.sites]
    return Savings(*map(sum, zip(*parts, strict=True))) if parts else Savings(0, 0, 0)


def _site_savings(model: nn.Module, site: Site, kept: tuple[int, ...], *, pad: bool) -> Savings:
    after = site.after(kept, pad=pad)
    numbers, weights = _numbers(model, site, after)
    runs_smaller = after.execution_with(after.heads) == "native"
    slots = len(site.slots) - len(after.slots)
    attention = 4 * site.head_dim * CONTEXT * slots if runs_smaller else 0
    cache = 0
    if runs_smaller and site.id.kind != "cross" and _keeps_cache(model):
        groups = _key_value_heads(site) - _key_value_heads(after)
        cache = 2 * groups * site.head_dim * next(model.parameters()).element_size()
    return Savings(numbers, 2 * weights + attention, cache)


def _all_numbers(model: nn.Module, _anatomy: Anatomy) -> int:
    return count_parameters(model)


def _all_flops(model: nn.Module, anatomy: Anatomy) -> int:
    weights = 0
    for module in model.modules():
        if isinstance(
            module, nn.Embedding
        ):  # looked up; an output layer that shares it is a module of its own
            continue
        for parameter in module.parameters(recurse=False):
            added = parameter.dim() < 2 or parameter.shape[0] == 1
            weights += 0 if added else floor(parameter.numel() * _share_used(model, parameter))
    attention = sum(4 * site.head_dim * CONTEXT * len(_computed(site)) for site in anatomy.sites)
    return 2 * weights + attention


def _share_used(model: nn.Module, parameter: nn.Parameter) -> float:
    """Return which share of a parameter one token meets: of experts that lie in one tensor, those that it is sent to."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    used = config_value(text, "num_experts_per_tok")
    if parameter.dim() < 3 or not isinstance(used, int):
        return 1.0
    there = {config_value(text, name) for name in EXPERT_COUNTS}
    return min(1.0, used / parameter.shape[0]) if parameter.shape[0] in there else 1.0


def _all_cache(model: nn.Module, anatomy: Anatomy) -> int:
    if not _keeps_cache(model):
        return 0
    size = next(model.parameters()).element_size()
    return sum(
        2 * _key_value_heads(site, _computed(site)) * site.head_dim * size
        for site in anatomy.sites
        if site.id.kind != "cross"
    )


def _keeps_cache(model: nn.Module) -> bool:
    """Whether the model generates from a cache: encoders whose family has decoders say ``use_cache``, too."""
    config = getattr(model, "config", None)
    is_encoder = getattr(config, "is_decoder", None) is False
    return takes_cache(model) and (
        not is_encoder or bool(getattr(config, "is_encoder_decoder", False))
    )


def _computed(site: Site) -> tuple[int, ...]:
    """Return the heads that are computed: all there ever were, where the attention keeps its width."""
    native = site.execution_with(site.heads) == "native"
    return site.slots if native else tuple(range(site.num_heads))


def parameters_removed(
    model: nn.Module, anatomy: Anatomy, *, remove: Collection[HeadId], pad: bool = False
) -> int:
    """Return how many parameters go when ``remove`` goes."""
    return savings(model, anatomy, remove=remove, pad=pad).parameters


def _numbers(model: nn.Module, before: Site, after: Site) -> tuple[int, int]:
    """Return how many numbers of all parameters, and of the weights of linear layers, go."""
    numbers = weights = 0
    slots = frozenset(after.slots)
    for item in after.cut_slices():
        parameter = model.get_parameter(item.parameter)
        size = parameter.shape[item.dim]
        gone = size - item.size(slots) if after != before else 0
        going = gone * (parameter.numel() // size) if size else 0
        numbers += going
        multiplied = item.side is not None and item.parameter.endswith(".weight")
        # Unfolded weights are multiplied in full size.
        if multiplied and after.execution_with(after.heads) != "full_size_weights":
            weights += going
    return numbers, weights


def _key_value_heads(site: Site, slots: tuple[int, ...] | None = None) -> int:
    slots = site.slots if slots is None else slots
    return len(site.groups(slots)) if site.num_key_value_heads > 1 else min(1, len(slots))
