"""Clark et al. 2019: how broadly a head looks."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.passes import RunContext
from headprune.scoring.attention import mean_over_queries
from headprune.scoring.estimate import Estimate


def entropy(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``- mean_n mean_t H(a_h(t, .))``, the entropy of a position's attention weights in nats.

    The sign makes heads that look everywhere, and so nowhere, the first to go.

    Source: Clark et al., "What Does BERT Look at?", BlackboxNLP 2019, section 3.3.
    """
    del loss, seed
    return mean_over_queries(model, anatomy, batches=batches, context=context, number="entropy")
