"""How far a student's outputs are from its teacher's, row by row: no label is read, and no row depends on another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from headprune.batch import Batch, forward, input_device
from headprune.tasks import Task

Distance: TypeAlias = Callable[[Any, Any, Mapping[str, Tensor]], Tensor]
"""``distance(student outputs, teacher outputs, inputs) -> [rows]``: 0 where both say the same."""


def class_divergence(
    student: Float[Tensor, "*rows classes"], teacher: Float[Tensor, "*rows classes"]
) -> Float[Tensor, "*rows"]:
    """Return KL(teacher || student) of two distributions over classes, given as logits, at temperature 1.

    ``sum_c p_c (log p_c - log q_c)`` with p the teacher's softmax and q the student's (Hinton et al. 2015). Its gradient by
    the student's logits is ``q - p``.
    """
    wanted, found = _log_probabilities(teacher), _log_probabilities(student)
    return (wanted.exp() * (wanted - found)).sum(-1)


def token_divergence(
    student: Float[Tensor, "rows positions vocabulary"],
    teacher: Float[Tensor, "rows positions vocabulary"],
    attention_mask: Int[Tensor, "rows positions"],
) -> Float[Tensor, " rows"]:
    """Return KL(teacher || student) of the next token, the mean over the positions that have one: padding counts nowhere.

    A position counts where it and the next one are real, so a window of n tokens has n - 1; each window counts once, whatever
    its length.
    """
    counts = attention_mask[:, :-1] * attention_mask[:, 1:]
    found = class_divergence(student[:, :-1], teacher[:, :-1])
    return found.where(counts.bool(), 0.0).sum(-1) / counts.sum(-1).clamp(min=1)


def cosine_distance(
    student: Float[Tensor, "rows hidden"], teacher: Float[Tensor, "rows hidden"]
) -> Float[Tensor, " rows"]:
    """Return 1 - cos of two embeddings: 0 for the same direction, 2 for the opposite one."""
    return 1 - cosine_similarity(student, teacher, dim=-1)


def distance_between(student: Task, teacher: Task) -> Distance:
    """Return the distance of a task: of embeddings where the model gives those (each as its own model pools), else KL.

    Args:
        student: The student's task.
        teacher: The teacher's: the same, but for the pooling.
    """
    if student.embed is not None and teacher.embed is not None:
        own, wanted = student.embed, teacher.embed
        return lambda outputs, others, inputs: cosine_distance(
            own(outputs, inputs["attention_mask"]), wanted(others, inputs["attention_mask"])
        )
    if student.predicted_loss is not None:
        return lambda outputs, others, inputs: token_divergence(
            outputs.logits, others.logits, inputs["attention_mask"]
        )
    return lambda outputs, others, _inputs: class_divergence(outputs.logits, others.logits)


@torch.no_grad()
def mean_distance(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    batches: Sequence[Batch],
    distance: Distance,
) -> float:
    """Return the mean distance over all rows of ``batches``, both models as they are."""
    total, rows = 0.0, 0
    for batch in batches:
        inputs = batch.to(input_device(model)).inputs
        found = distance(forward(model, inputs), forward(teacher, inputs), inputs)
        total += float(found.double().sum())
        rows += batch.num_rows
    return total / rows


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms of a softmax, in single precision at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
