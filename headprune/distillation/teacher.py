"""What a student learns from its teacher: the distance between their outputs, row by row, and what came of a training.

No label is read, and no row depends on another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from headprune.batch import Batch, forward
from headprune.passes import Parts, halves_of_batch
from headprune.placement import input_device, not_finite
from headprune.tasks.distill import Distillation
from headprune.tasks.rows import Example

Distance: TypeAlias = Callable[[Any, Any, Mapping[str, Tensor]], Tensor]
"""``distance(student outputs, teacher outputs, inputs) -> [rows]``: 0 where both say the same."""


def distance_between(student: Distillation, teacher: Distillation) -> Distance:
    """Return how far a student's outputs are from its teacher's, which may be pooled in another way, by the task's distance."""
    return lambda outputs, others, inputs: student.distance(
        student.outputs(outputs, inputs), teacher.outputs(others, inputs), inputs
    )


@torch.no_grad()
def mean_distance(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    batches: Sequence[Batch],
    distance: Distance,
) -> float:
    """Return the mean distance over all rows of ``batches``, both models as they are.

    Raises:
        ModelError: It is infinite or not a number.
    """
    total, rows = 0.0, 0
    parts = Parts("distance to the teacher", halves_of_batch)

    def summed(batch: Batch) -> float:
        inputs = batch.to(input_device(model)).inputs
        distances = distance(forward(model, inputs), forward(teacher, inputs), inputs)
        return float(distances.double().sum())

    for batch in batches:
        total += sum(parts.run(batch, summed))
        rows += batch.num_rows
    if not math.isfinite(total):
        raise not_finite("the distance to the teacher is not finite", teacher, where="`teacher`")
    return total / rows


@dataclass(frozen=True, eq=False)
class DistillJob:
    """What is learned from whom, and with which settings.

    Args:
        teacher: The model to be like.
        examples: What is trained on.
        held_out: What Trainer's own evaluation reads, where it is asked for.
        collate: ``examples -> inputs``, the model's.
        distance: The loss, row by row.
        arguments: Trainer's.
        lora: Rank of the adapters; None trains every weight.
        checkpoint: Where to go on from.
        notify: Reports each logged step to the user.
        sample: Inputs on which merging the adapters is proven.
    """

    teacher: PreTrainedModel
    examples: Sequence[Example]
    held_out: Sequence[Example]
    collate: Callable[[Sequence[Example]], Mapping[str, Tensor]]
    distance: Distance
    arguments: TrainingArguments
    lora: int | None = None
    checkpoint: Path | None = None
    notify: Callable[[str], None] = lambda _text: None
    sample: Mapping[str, Tensor] = field(default_factory=dict)
