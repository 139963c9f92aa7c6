"""From the states of a text's tokens to one embedding, as sentence-transformers pools them: pure functions on tensors."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

Features: TypeAlias = Mapping[str, Tensor]
"""What is passed from module to module: ``token_embeddings``, ``attention_mask``, then ``sentence_embedding``."""
Step: TypeAlias = Callable[[Features], Features]
Tokens: TypeAlias = Float[Tensor, "rows positions hidden"]
Mask: TypeAlias = Int[Tensor, "rows positions"]
Pooled: TypeAlias = Float[Tensor, "rows hidden"]

TOKENS, SENTENCE, MASK = "token_embeddings", "sentence_embedding", "attention_mask"
# All layers' states, stacked; where the model puts them out.
LAYERS = "all_layer_embeddings"
_LEAST = 1e-9


def _cls(tokens: Tokens, mask: Mask, _starts: Tensor) -> Pooled:
    return _at(tokens, mask.argmax(1))


def _max(tokens: Tokens, mask: Mask, _starts: Tensor) -> Pooled:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values


def _mean(tokens: Tokens, mask: Mask, _starts: Tensor) -> Pooled:
    weights = mask.to(tokens.dtype)
    return _weighted(tokens, weights) / weights.sum(1, keepdim=True).clamp(min=_LEAST)


def _mean_sqrt(tokens: Tokens, mask: Mask, _starts: Tensor) -> Pooled:
    weights = mask.to(tokens.dtype)
    return _weighted(tokens, weights) / weights.sum(1, keepdim=True).clamp(min=_LEAST).sqrt()


def _weighted_mean(tokens: Tokens, mask: Mask, starts: Tensor) -> Pooled:
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    weights = (mask * (positions - starts.unsqueeze(1))).to(tokens.dtype)
    return _weighted(tokens, weights) / weights.sum(1, keepdim=True).clamp(min=_LEAST)


def _last(tokens: Tokens, mask: Mask, _starts: Tensor) -> Pooled:
    real, from_end = mask.flip(1).max(1)
    last = torch.where(real == 0, 0, tokens.shape[1] - 1 - from_end)
    return _at(tokens, last) * real.unsqueeze(-1)


def _weighted(tokens: Tokens, weights: Tensor) -> Pooled:
    return (tokens * weights.unsqueeze(-1)).sum(1)


def _at(tokens: Tokens, positions: Tensor) -> Pooled:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), positions]


POOLING: dict[str, Callable[[Tokens, Mask, Tensor], Pooled]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""Every way of pooling, in the order in which old configs that switch on several join them."""


def pooled(features: Features, *, modes: tuple[str, ...], prompt_length: int) -> Features:
    """Make a sentence's embedding of its tokens': several modes are joined; the first ``prompt_length`` tokens don't count."""
    tokens, mask = features[TOKENS], features[MASK]
    starts = mask.argmax(1)
    if prompt_length:
        positions = torch.arange(mask.shape[1], device=mask.device)
        mask = mask * (positions >= (starts + prompt_length).unsqueeze(1))
    parts = [POOLING[mode](tokens, mask, starts) for mode in modes]
    return {**features, SENTENCE: torch.cat(parts, dim=-1)}


SIMILARITIES: dict[str, Callable[[Pooled, Pooled], Float[Tensor, " rows"]]] = {
    "cosine": lambda first, second: (normalize(first, dim=-1) * normalize(second, dim=-1)).sum(-1),
    "dot": lambda first, second: (first * second).sum(-1),
    "euclidean": lambda first, second: -(first - second).square().sum(-1).sqrt(),
    "manhattan": lambda first, second: -(first - second).abs().sum(-1),
}
"""How alike pairs of embeddings are; of distances it is what lies below zero."""
