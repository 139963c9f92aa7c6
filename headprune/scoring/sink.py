"""How much of a head's attention goes to the first position, where heads look that have nothing to say."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss
from headprune.errors import DataError
from headprune.passes import RunContext
from headprune.scoring.attention import mean_over_queries
from headprune.scoring.estimate import Estimate


def sink(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by ``1 - mean_n mean_t a_h(t, 0)``: the attention that doesn't go to the first position.

    The first position must be a token: rows are padded on the right, as headprune's own are.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, section 3.1, saw the sinks.

    Raises:
        DataError: A row begins with padding.
    """
    del loss, seed
    masks = [batch.inputs.get("attention_mask") for batch in batches]
    if any(mask is not None and not bool(mask[:, 0].all()) for mask in masks):
        raise DataError(
            "a row begins with padding, so its first position is no token",
            where="batches",
            hint="pad on the right",
        )
    return mean_over_queries(model, anatomy, batches=batches, context=context, number="sink")
