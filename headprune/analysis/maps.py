"""Attention of every head on one text, as a document that a page is drawn from."""

from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import Artefact
from headprune.attention import plain_attention, weight_reader
from headprune.batch import Batch, forward
from headprune.errors import UnsupportedError
from headprune.heads import HeadName, SiteId
from headprune.masking import observed
from headprune.placement import input_device

SCALE = 65535
"""Weights are kept as whole numbers of 16 bits: 1 is 65535, so that each is off by at most 0.000008."""

MOST_WEIGHTS = 4_000_000
"""Weights that a page holds at most: about 11 MB."""

Text = Literal["source", "target"]


class ViewedHead(BaseModel):
    """What is known of a head beside its attention.

    Args:
        head: Its name, by its original index.
        is_removed: Whether it was pruned.
        importance: Its score; None where there are no scores of it.
        rank: Its place among all heads with scores, 1 being the most important.
        roles: What it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: HeadName
    is_removed: bool
    importance: float | None = None
    rank: int | None = None
    roles: tuple[str, ...] = ()


class AttentionMap(BaseModel):
    """The weights of one call of an attention.

    Args:
        site: The attention.
        call: Which call it was, from 1 on, of ``calls``: layers that share an attention call it several times.
        calls: How often the attention was called.
        is_causal: Whether no query looks at a later position.
        queries: Whose tokens ask.
        keys: Whose tokens are looked at.
        heads: Original indices of the heads, in the order of their weights.
        shape: Numbers of heads, queries and keys.
        weights: Base64 of little-endian 16-bit numbers [heads, queries, keys]; 1 is 65535.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    call: int = 1
    calls: int = 1
    is_causal: bool
    queries: Text
    keys: Text
    heads: tuple[int, ...]
    shape: tuple[int, int, int]
    weights: str

    def numbers(self) -> Float[Tensor, "heads queries keys"]:
        """Return the weights."""
        whole = np.frombuffer(b64decode(self.weights), dtype="<u2").astype(np.float32)
        return torch.from_numpy(whole / SCALE).reshape(self.shape)


class AttentionView(Artefact):
    """Attention of heads on one text.

    ``tokens`` are those of the source (and of the target, which a decoder of an encoder-decoder reads); ``cut`` says of which
    text how many tokens there were before it was cut; ``scores`` and ``roles`` say where importance and roles come from.
    """

    written_by = "view"

    tokens: dict[Text, tuple[str, ...]]
    cut: dict[Text, int] = {}
    is_decoded: bool = False
    heads: tuple[ViewedHead, ...]
    maps: tuple[AttentionMap, ...]
    scores: dict[str, Any] = {}
    roles: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}


@torch.no_grad()
def longest_text(
    model: PreTrainedModel,
    anatomy: Anatomy,
    inputs: Mapping[str, Tensor],
    sites: Collection[SiteId],
) -> int:
    """Return how many tokens fit a page that shows these attentions, each as often as the model calls it.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        inputs: What its forward takes: one short row.
        sites: The attentions shown.
    """
    device = input_device(model)
    with observed(model, anatomy) as calls:
        forward(model, {name: tensor.to(device) for name, tensor in inputs.items()})
    shown = sum(len(site.heads) * len(calls[site.id]) for site in anatomy.sites if site.id in sites)
    return isqrt(MOST_WEIGHTS // max(1, shown))


@torch.no_grad()
def attention_maps(
    model: PreTrainedModel,
    anatomy: Anatomy,
    inputs: Mapping[str, Tensor],
    sites: Collection[SiteId],
) -> tuple[AttentionMap, ...]:
    """Return the attention weights of one row, as the model's plain attention makes them, in the order of its attentions.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        inputs: What its forward takes: one row.
        sites: The attentions wanted.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights, or splits a row into parts.
    """
    calls: dict[SiteId, list[Tensor]] = {site.id: [] for site in anatomy.sites if site.id in sites}

    def keep(site: Site, weights: Tensor) -> None:
        if len(weights) != 1:
            raise UnsupportedError(
                f"the attention {site.id} splits a text into {len(weights)} parts",
                where=f"{type(model).__name__} ({anatomy.model_type})",
                hint="choose `layers` without it",
            )
        if site.id in calls:
            calls[site.id].append((weights[0] * SCALE).round().to("cpu", torch.int32))

    row = torch.zeros(1, dtype=torch.long)
    batch = Batch(inputs, row, row, row).to(input_device(model))
    with plain_attention(model):
        weight_reader(model, anatomy, batch)(batch, keep)
    texts: dict[str, Text] = {"decoder": "target"} if "decoder_input_ids" in inputs else {}
    return tuple(
        _map(
            site,
            weights,
            own=texts.get(site.id.stack, "source"),
            call=(number, len(calls[site.id])),
        )
        for site in anatomy.sites
        for number, weights in enumerate(calls.get(site.id, ()), start=1)
    )


def _map(site: Site, weights: Tensor, *, own: Text, call: tuple[int, int]) -> AttentionMap:
    heads, queries, keys = weights.shape
    is_cross = site.id.kind == "cross"
    return AttentionMap(
        site=str(site.id),
        call=call[0],
        calls=call[1],
        is_causal=not is_cross and queries == keys > 1 and not bool(weights.triu(1).any()),
        queries=own,
        keys="source" if is_cross else own,
        heads=site.heads,
        shape=(heads, queries, keys),
        weights=b64encode(weights.numpy().astype("<u2").tobytes()).decode(),
    )
