"""Voita et al. 2019: how sure a head is of where it looks."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.scoring.attention import mean_over_queries
from headprune.scoring.estimate import Estimate


def confidence(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``mean_n mean_t max_s a_h(t, s)``: the largest attention weight of a position, on average.

    Padding doesn't count; unlike in the paper, the end of the sentence does.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 4.
    """
    del loss, seed
    return mean_over_queries(model, anatomy, batches=batches, context=context, number="confidence")
