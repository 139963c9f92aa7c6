"""Detectors that ask where a head looks, whatever the tokens are. Each returns a number of every query, nan where it has none."""

import torch
from torch import Tensor

from headprune.analysis.call import AttentionCall

Columns = dict[str, Tensor]
"""Numbers [rows, heads, queries] by their name; the name is empty where a role has one number."""

_FARTHEST = 8


def previous(call: AttentionCall) -> Columns:
    """Return ``a(t, t - 1)``; the first position has nothing before it and gives 0.

    Source: Clark et al., "What Does BERT Look at?", BlackboxNLP 2019, section 3.1: a head is positional above 0.5.
    """
    return {} if call.is_cross else {"": call.along(call.offsets == -1)}


def following(call: AttentionCall) -> Columns:
    """Return ``a(t, t + 1)``.

    Source: as :func:`previous`.
    """
    return {} if call.is_cross else {"": call.along(call.offsets == 1)}


def self_attention(call: AttentionCall) -> Columns:
    """Return ``a(t, t)``.

    Source: Clark et al. 2019, section 3.1, with their threshold for neighbours.
    """
    return {} if call.is_cross else {"": call.along(call.offsets == 0)}


def offset(call: AttentionCall) -> Columns:
    """Return, for each distance up to 8, whether the largest weight is at that distance.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 5.1: positional heads look at the same relative
    position at least 90 % of the time.
    """
    if call.is_cross:
        return {}
    largest, offsets = call.largest(), call.offsets
    far = [step for step in range(-_FARTHEST, _FARTHEST + 1) if step]
    return {f"{step:+d}": (largest * (offsets == step)).sum(-1) for step in far}


def broad(call: AttentionCall) -> Columns:
    """Return the entropy ``- sum_s a(t, s) log a(t, s)`` in nats.

    Source: Clark et al. 2019, section 3.3; their code calls heads above 3.8 nats broad.
    """
    return {"": -torch.special.xlogy(call.weights, call.weights).sum(-1)}


def confident(call: AttentionCall) -> Columns:
    """Return ``max_s a(t, s)``.

    Source: Voita et al. 2019, section 4; positional heads are above 0.8. Unlike there, the end of the sentence counts.
    """
    return {"": call.weights.amax(-1)}


def distance(call: AttentionCall) -> Columns:
    """Return ``sum_s a(t, s) |t - s|`` in tokens.

    Source: Vig and Belinkov, "Analyzing the Structure of Attention in a Transformer Language Model", BlackboxNLP 2019, eq. 3.
    """
    return {} if call.is_cross else {"": (call.weights * call.offsets.abs()).sum(-1)}


def window(call: AttentionCall) -> Columns:
    """Return the share of the text's tokens that get any attention by any head: what the mask lets a query see."""
    text = call.is_same_text
    seen = (call.weights > 0).any(1) & text
    share = seen.sum(-1) / text.sum(-1).clamp_min(1)
    return {"": share[:, None].expand(call.weights.shape[:3])}


def diagonal(call: AttentionCall) -> Columns:
    """Return ``1 - sum_s a(t, s) |t / T - s / S|`` of cross-attention, T and S being the last real positions."""
    if not call.is_cross:
        return {}

    def relative(real: Tensor) -> Tensor:
        place = real.cumsum(-1) - 1
        return place / place.amax(-1, keepdim=True).clamp_min(1)

    apart = (relative(call.is_query)[:, :, None] - relative(call.is_key)[:, None, :]).abs()
    return {"": 1 - call.along(apart)}
