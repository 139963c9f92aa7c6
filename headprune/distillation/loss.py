"""How far a student's outputs are from its teacher's, row by row: no label is read, and no row depends on another."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.batch import Batch, forward
from headprune.memory import Parts, halves_of_batch
from headprune.placement import input_device, not_finite
from headprune.tasks.distill import Distillation

Distance: TypeAlias = Callable[[Any, Any, Mapping[str, Tensor]], Tensor]
"""``distance(student outputs, teacher outputs, inputs) -> [rows]``: 0 where both say the same."""


def distance_between(student: Distillation, teacher: Distillation) -> Distance:
    """Return how far the outputs of a student are from its teacher's, by the task's distance.

    Args:
        student: How the student's task does without labels.
        teacher: The same of the teacher's, whose embeddings may be pooled in another way.
    """
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
        found = distance(forward(model, inputs), forward(teacher, inputs), inputs)
        return float(found.double().sum())

    for batch in batches:
        total += sum(parts.run(batch, summed))
        rows += batch.num_rows
    if not math.isfinite(total):
        raise not_finite("the distance to the teacher is not finite", teacher, where="--teacher")
    return total / rows
