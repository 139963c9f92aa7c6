"""Losses that several models share: one number per example, smaller is better."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from headprune.batch import Batch

IGNORED = -100
"""The label of a position that no loss is taken of."""


def token_cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    """Return each example's mean cross-entropy over its labelled positions."""
    losses = cross_entropy(
        outputs.logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (batch.targets != IGNORED).sum(1)
