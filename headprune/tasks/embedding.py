"""From token states to a sentence's embedding, as sentence-transformers computes it: pure functions on tensors."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

Features: TypeAlias = Mapping[str, Tensor]
"""What goes from module to module: ``token_embeddings``, ``attention_mask``, then ``sentence_embedding``."""
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
    """Make a sentence's embedding of its tokens': several ways are joined; the first ``prompt_length`` tokens don't count."""
    tokens, mask = features[TOKENS], features[MASK]
    starts = mask.argmax(1)
    if prompt_length:
        positions = torch.arange(mask.shape[1], device=mask.device)
        mask = mask * (positions >= (starts + prompt_length).unsqueeze(1))
    parts = [POOLING[mode](tokens, mask, starts) for mode in modes]
    return {**features, SENTENCE: torch.cat(parts, dim=-1)}


def weighted_layers(features: Features, *, weights: Tensor, start: int) -> Features:
    """Put the weighted mean of the layers from ``start`` on in place of the last one, where all layers are put out."""
    if LAYERS not in features:
        return features
    layers = features[LAYERS][start:]
    factors = weights.to(layers)
    mean = (layers * factors.view(-1, 1, 1, 1)).sum(0) / factors.sum()
    return {**features, TOKENS: mean}


def dense(
    features: Features,
    *,
    source: str,
    target: str,
    weights: Mapping[str, Tensor],
    activation: nn.Module,
    residual: bool,
) -> Features:
    """Apply a linear layer and its activation; ``residual`` adds the input, projected where ``weights`` say so."""
    values = features[source]
    near = {name: tensor.to(values) for name, tensor in weights.items()}
    result = activation(linear(values, near["linear.weight"], near.get("linear.bias")))
    if residual:
        shortcut = near.get("residual.weight")
        result = result + (values if shortcut is None else linear(values, shortcut))
    return {**features, target: result}


def normalized(features: Features, *, source: str, target: str) -> Features:
    """Scale to unit length, where there is something to scale."""
    if source not in features:
        return features
    return {**features, target: normalize(features[source], dim=-1)}


def layer_normalized(features: Features, *, weights: Mapping[str, Tensor]) -> Features:
    """Apply layer normalisation to the sentence's embedding."""
    values = features[SENTENCE]
    weight, bias = (weights[name].to(values) for name in ("norm.weight", "norm.bias"))
    return {**features, SENTENCE: layer_norm(values, weight.shape, weight, bias)}


def compare(
    first: Float[Tensor, "examples hidden"],
    second: Float[Tensor, "examples hidden"],
    *,
    similarity: str,
) -> Float[Tensor, " examples"]:
    """Return how alike pairs of embeddings are: ``cosine``, ``dot``, or minus their ``euclidean`` or ``manhattan`` distance."""
    if similarity == "dot":
        return (first * second).sum(-1)
    if similarity == "euclidean":
        return -(first - second).square().sum(-1).sqrt()
    if similarity == "manhattan":
        return -(first - second).abs().sum(-1)
    return (normalize(first, dim=-1) * normalize(second, dim=-1)).sum(-1)


def _weighted(tokens: Tokens, weights: Tensor) -> Pooled:
    return (tokens * weights.unsqueeze(-1)).sum(1)


def _at(tokens: Tokens, positions: Tensor) -> Pooled:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), positions]
