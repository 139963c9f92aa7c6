"""What a student learns from its teacher: the distance between their outputs, row by row, and what came of a training.

No label is read, and no row depends on another.
"""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, forward
from headprune.passes import Parts, Progress, halves_of_batch
from headprune.placement import input_device, not_finite
from headprune.runtime.distributed import World
from headprune.tasks.distill import Distillation
from headprune.tasks.rows import Example

Distance: TypeAlias = Callable[[Any, Any, Mapping[str, Tensor]], Tensor]
"""``distance(student outputs, teacher outputs, inputs) -> [rows]``: 0 where both say the same."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""How much of a training may be kept."""


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


def keep_nearest(
    model: nn.Module, old: Mapping[str, Tensor], away: Callable[[], float], *, start: float
) -> tuple[float, float]:
    """Give the model the weights on the way from old to new that are nearest to the teacher; return the share and the distance.

    Less and less is tried until something helps and less of it helps less. Where none is nearer than the old ones (``start``),
    these come back, and the distance is that of the new ones.
    """
    new = {name: model.get_parameter(name).detach().to("cpu", copy=True) for name in old}
    distances, best = dict[float, float](), SHARES[0]
    for share in SHARES:
        _write_between(model, old, new, share)
        distances[share] = away()
        if distances[share] <= distances[best]:
            best = share
        elif distances[best] < start:
            break
    if distances[best] >= start:
        restore_weights(model, old)
        return 0.0, distances[1.0]
    _write_between(model, old, new, best)
    return best, distances[best]


@torch.no_grad()
def _write_between(
    model: nn.Module, old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float
) -> None:
    for name, value in new.items():
        mixed = value if share == 1.0 else torch.lerp(old[name].float(), value.float(), share)
        model.get_parameter(name).copy_(mixed)


def copied_weights(model: PreTrainedModel, names: Collection[str] | None) -> dict[str, Tensor]:
    """Return copies, in CPU memory, of the parameters that are named; None stands for all."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if names is None or name in names
    }


@torch.no_grad()
def restore_weights(model: nn.Module, old: Mapping[str, Tensor]) -> None:
    """Give the model the parameters back that were copied."""
    for name, value in old.items():
        model.get_parameter(name).copy_(value)


def attention_parameters(model: PreTrainedModel, anatomy: Anatomy) -> frozenset[str]:
    """Return the names of the parameters of all attentions that have heads, their output projections' among them."""
    cut = {item.parameter for site in anatomy.sites for item in site.slices}
    inside = tuple(f"{path}." for site in anatomy.sites for path in (site.path, site.output))
    names = (name for name, _parameter in model.named_parameters())
    return frozenset(name for name in names if name in cut or name.startswith(inside))


def copy_as_teacher(
    model: PreTrainedModel, *, changed: Collection[str] | None = None
) -> PreTrainedModel:
    """Return a copy of a model that stays as it is whatever becomes of the model, and learns nothing.

    Args:
        model: The model.
        changed: Names of the parameters whose numbers will change in place; the others lie in memory once. None: all will.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False)
        for name, parameter in model.named_parameters()
        if changed is not None and name not in changed
    }
    teacher: PreTrainedModel = copy.deepcopy(model, memo)
    return teacher.requires_grad_(False)


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
        progress: Where steps are reported.
        lora: Rank of the adapters; None trains the weights themselves.
        trained: Names of the parameters that are trained, or get adapters; None stands for all.
        checkpoint: Where to go on from.
        saves_by_time: Whether checkpoints are written by time, rather than as ``arguments`` say.
        sample: Inputs on which merging the adapters is proven.
        world: The processes that share each step.
    """

    teacher: PreTrainedModel
    examples: Sequence[Example]
    held_out: Sequence[Example]
    collate: Callable[[Sequence[Example]], Mapping[str, Tensor]]
    distance: Distance
    arguments: TrainingArguments
    progress: Progress
    lora: int | None = None
    trained: Collection[str] | None = None
    checkpoint: Path | None = None
    saves_by_time: bool = False
    sample: Mapping[str, Tensor] = field(default_factory=dict)
    world: World = field(default_factory=World)
