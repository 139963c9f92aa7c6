"""A kind of task as a value: how rows become examples, examples become batches, and outputs become losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headprune.batch import Batch, PositionLoss
from headprune.tasks.asked import Fill
from headprune.tasks.data import Columns, Table
from headprune.tasks.distill import Distill
from headprune.tasks.metrics import Predicted
from headprune.tasks.rows import Example


@dataclass(frozen=True)
class Task:
    """What must be known of a task.

    Args:
        name: Its name on the command line.
        auto_class: The ``AutoModel...`` class that loads its models.
        metric: The default metric.
        num_texts: How many text columns it reads.
        needs_label: Whether its loss reads a label.
        to_examples: ``(table, columns, tokenizer, config, max_length) -> examples``.
        to_batches: ``(examples, tokenizer, max_length, batch_size, accepts, fill) -> batches``.
        loss: ``(outputs, batch) -> [examples]``, smaller is better; one example's loss never depends on another's.
        predict: ``(outputs, batch) -> (predictions, references)``, what the metric compares, [examples] each.
        distill: How it does without labels.
        predicted_loss: Set where the predictions are a loss of this kind, the references the batch's targets, and ``loss`` the
            one divided by the other: then the logits of a few positions at a time are enough to evaluate.
        reads_forward: Whether its models must predict each token from those before it alone.
        max_length: The longest input in tokens that the model itself settles; None where it settles none.
        described: What the model does beside its transformer, in words that are said aloud.
        predicted: What it predicts: a metric must compare the same.
        remarks: ``(table, columns, config)`` to what is to be said of how labels are read.
        reads_prose: Whether the rows are pieces of one text, not examples.
    """

    name: str
    auto_class: str
    metric: str
    num_texts: tuple[int, ...]
    needs_label: bool
    to_examples: Callable[[Table, Columns, Any, Any, int], tuple[Example, ...]]
    to_batches: Callable[
        [Sequence[Example], Any, int, int | None, Callable[[str], bool], Fill],
        tuple[Batch, ...],
    ]
    loss: Callable[[Any, Batch], Tensor]
    predict: Callable[[Any, Batch], tuple[Tensor, Tensor]]
    distill: Distill
    predicted_loss: PositionLoss | None = None
    reads_forward: bool = False
    reads_prose: bool = False
    max_length: int | None = None
    described: str = ""
    predicted: Predicted = "numbers"
    remarks: Callable[[Table, Columns, Any], tuple[str, ...]] = lambda _table, _columns, _config: ()

    def num_classes(self, config: Any) -> int | None:
        """Return how many classes a model tells apart, None where it predicts none."""
        return int(config.num_labels) if self.predicted == "classes" else None
