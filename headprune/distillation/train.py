"""Train a student towards its teacher with transformers' Trainer; ours is the loss, and what must not move meanwhile."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, set_seed

from headprune.anatomy import Anatomy
from headprune.distillation.adapters import add_adapters, merge_adapters
from headprune.distillation.loss import Distance
from headprune.errors import (
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    ModelError,
    first_line,
    is_out_of_memory,
)
from headprune.surgery import dead_indices
from headprune.tasks.rows import Example
from headprune.verify import Proof, merged_equals_adapted, run

_WRITER = "inline_container.cc"
"""What torch.save names in an error when less could be written than it meant to."""


class Heal(BaseModel):
    """What healing did.

    Args:
        teacher: The model that was learned from: name, revision, fingerprint.
        objective: The loss.
        trained_on: Examples that the weights were trained on.
        held_out: Examples of the same data that weren't.
        loss: Mean loss of those, before and after.
        steps: Steps of the optimizer.
        lora: Rank of the adapters that were merged; None where all weights were trained.
        settings: What Trainer was told, beside its own defaults.
        rows: Hashes of all inputs that this model was ever trained on, or that chose its heads: they don't report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher: dict[str, Any]
    objective: str
    trained_on: int
    held_out: int
    loss: tuple[float, float]
    steps: int
    lora: int | None = None
    settings: dict[str, Any] = {}
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Course:
    """What is learned, and how.

    Args:
        teacher: The model to be like.
        examples: What is trained on.
        held_out: What Trainer's own evaluation reads, where it is asked for.
        collate: ``examples -> inputs``, the model's.
        distance: The loss, row by row.
        arguments: What Trainer is told.
        lora: Rank of the adapters; None trains every weight.
        checkpoint: Where to go on from.
        notify: Tells the user something.
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
    notify: Callable[[str], None] | None = None
    sample: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """How many steps the optimizer made, those before a checkpoint too; and that merged adapters say what they said before."""

    steps: int
    proofs: tuple[Proof, ...] = ()


def train(model: PreTrainedModel, anatomy: Anatomy, course: Course) -> Trained:
    """Train ``model`` in place; its sizes, heads, dtypes, config and the global random states stay as they were.

    Weights of half precision are trained in single precision and rounded once, at the end; under adapters they are frozen as
    they are, and what is rounded is their sum with the adapters. Dead weight of padded heads stays zero. There is no dropout:
    student and teacher see the same.

    Args:
        model: The student.
        anatomy: Its anatomy.
        course: What is learned, and how.

    Raises:
        CheckpointError: A checkpoint can't be written.
        ConfigError: Trainer can't be run with these arguments.
        MemoryLimitError: Memory ran out on a batch.
        ModelError: A weight is infinite or not a number afterwards.
    """
    from headprune.distillation.trainer import Distillation

    with ExitStack() as stack:
        stack.enter_context(_random_states_kept())
        stack.enter_context(_config_kept(model))
        set_seed(course.arguments.seed)
        student: Any = model
        if course.lora is None:
            stack.enter_context(_single_precision(model))
            stack.enter_context(_dead_weight_kept(model, anatomy))
        else:
            stack.enter_context(_trainable_kept(model))
            student = add_adapters(model, rank=course.lora)
        try:
            trainer = Distillation(student, course)
            trainer.train(
                resume_from_checkpoint=str(course.checkpoint) if course.checkpoint else None
            )
        except (ValueError, ImportError, NotImplementedError) as error:
            raise ConfigError(
                f"Trainer stopped: {str(error).strip().splitlines()[0]}",
                where="heal",
                hint="check --trainer, or the checkpoint that --resume goes on from",
            ) from error
        except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise _too_large(course.arguments) from error
            if isinstance(error, RuntimeError) and _WRITER not in str(error):
                raise
            raise CheckpointError(
                f"a checkpoint can't be written: {first_line(error)}",
                where=str(course.arguments.output_dir),
                hint="free some space, or choose another --run",
            ) from error
        # Mixed precision wraps the forward; what is saved and measured is the plain one.
        trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
        proofs = () if course.lora is None else (_merge(student, model, course.sample),)
    model.zero_grad(set_to_none=True)
    model.eval()
    _refuse_diverged(model)
    return Trained(int(trainer.state.global_step), proofs)


def _too_large(arguments: TrainingArguments) -> MemoryLimitError:
    """Return the error for batches that memory doesn't hold with their gradients: steps depend on them, so none is halved."""
    rows, gathered = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    smaller = (
        f"--batch-size {rows // 2} --trainer gradient_accumulation_steps={2 * gathered} makes the same steps"
        if rows > 1
        else "use a smaller --max-length, --lora 8, or a --device with more memory"
    )
    return MemoryLimitError(
        f"memory ran out while training on batches of {rows} row(s)", where="heal", hint=smaller
    )


def _merge(student: Any, model: PreTrainedModel, sample: Mapping[str, Tensor]) -> Proof:
    """Merge the adapters of ``student`` into ``model``, and compare the two before weights of half precision are rounded."""
    student.eval()
    rows = len(next(iter(sample.values())))
    with _single_precision(model):
        adapted = run(model, sample)  # the adapters are in it
        merge_adapters(student)
        return merged_equals_adapted(adapted, run(model, sample), rows=rows)


def _refuse_diverged(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelError(
                f"the training diverged: {name} is not finite",
                where="heal",
                hint="use a smaller --learning-rate; in half precision, --trainer bf16=true keeps weights in single",
            )


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Trainer seeds Python's, numpy's and torch's global generators; give them back as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that Trainer seeds
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


@contextmanager
def _config_kept(model: PreTrainedModel) -> Iterator[None]:
    """Trainer turns the key/value cache off, and its checkpoints note their dtype and class, in the model's own config."""
    before = dict(vars(model.config))
    try:
        yield
    finally:
        vars(model.config).clear()
        vars(model.config).update(before)


@contextmanager
def _trainable_kept(model: PreTrainedModel) -> Iterator[None]:
    """Adapters freeze what is under them."""
    # The parameters themselves: while adapters are there, their names are others, and an error leaves them there.
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, learns in before:
            parameter.requires_grad_(learns)


@contextmanager
def _single_precision(model: PreTrainedModel) -> Iterator[None]:
    """Let weights of half precision be single: a step of training is often less than half the distance to their neighbour."""
    # The parameters themselves: their names change as adapters are merged.
    half = [(p, p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _dtype in half:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in half:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


@contextmanager
def _dead_weight_kept(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
    """Zero the gradients of padded heads: zero weights with zero gradients stay zero, whatever the optimizer."""
    hooks = []
    for site in anatomy.sites:
        for item, dead in dead_indices(site):
            places = torch.tensor(dead)

            def without(gradient: Tensor, dim: int = item.dim, places: Tensor = places) -> Tensor:
                return gradient.index_fill(dim, places.to(gradient.device), 0)

            hooks.append(model.get_parameter(item.parameter).register_hook(without))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
