"""Train a student towards its teacher with transformers' Trainer; ours is the loss, and what must not move meanwhile.

Importing Trainer takes longer than most commands do, so this module is imported where a training begins.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from headprune.anatomy import Anatomy
from headprune.artefact import Proof
from headprune.batch import forward
from headprune.distillation.settings import add_adapters
from headprune.distillation.teacher import DistillJob
from headprune.errors import (
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    ModelError,
    first_line,
    is_out_of_memory,
)
from headprune.surgery import dead_indices
from headprune.verify import merged_equals_adapted, run

_WRITER = "inline_container.cc"
"""What torch.save names in an error when less could be written than it meant to."""
_REPORTED = ("loss", "eval_loss")


class Distillation(Trainer):
    """Trains towards a teacher; all else is Trainer's."""

    def __init__(self, model: Any, job: DistillJob) -> None:
        super().__init__(
            model=model,
            args=job.arguments,
            data_collator=job.collate,  # type: ignore[arg-type] # it takes any function of a list of rows
            train_dataset=job.examples,
            eval_dataset=job.held_out or None,
            callbacks=[_Reporter(job)],
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, where data goes
        self.model_accepts_loss_kwargs = False  # our loss is the mean over a batch
        self._job = job
        job.teacher.to(job.arguments.device)  # type: ignore[arg-type] # typed as a decorator

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean distance to the teacher over the rows of a batch."""
        del num_items_in_batch
        model.eval()  # no dropout: the student learns the outputs of the whole teacher
        outputs = forward(model, inputs)
        with torch.no_grad():
            targets = forward(self._job.teacher, inputs)
        loss = self._job.distance(outputs, targets, inputs).mean()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the loss of a batch, for Trainer's own evaluation; there are no labels to predict."""
        del prediction_loss_only, ignore_keys
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


class _Reporter(TrainerCallback):
    """Reports what Trainer logs."""

    def __init__(self, job: DistillJob) -> None:
        self._notify = job.notify

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_others: Any,
    ) -> None:
        """Report the step, the loss, and the loss of the held-out rows where it was asked for."""
        del args, control
        logged = {name: value for name, value in (logs or {}).items() if name in _REPORTED}
        if logged:
            losses = ", ".join(f"{name} {value:.4g}" for name, value in logged.items())
            self._notify(f"step {state.global_step}/{state.max_steps}: {losses}")


@dataclass(frozen=True)
class Trained:
    """How many steps the optimizer made, those before a checkpoint too; and that merging the adapters changed no output."""

    steps: int
    proofs: tuple[Proof, ...] = ()


def train(model: PreTrainedModel, anatomy: Anatomy, job: DistillJob) -> Trained:
    """Train ``model`` in place; its sizes, heads, dtypes, config and the global random states stay as they were.

    Weights of half precision are trained in single precision and rounded once, at the end; under adapters they are frozen as
    they are, and what is rounded is their sum with the adapters. Dead weight of padded heads stays zero. There is no dropout:
    student and teacher see the same.

    Raises:
        CheckpointError: A checkpoint can't be written.
        ConfigError: Trainer can't be run with these arguments.
        MemoryLimitError: Memory ran out on a batch.
        ModelError: A weight is infinite or not a number afterwards.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states_kept())
        stack.enter_context(_config_kept(model))
        set_seed(job.arguments.seed)
        student: Any = model
        if job.lora is None:
            stack.enter_context(_single_precision(model))
            stack.enter_context(_dead_weight_kept(model, anatomy))
        else:
            stack.enter_context(_trainable_kept(model))
            student = add_adapters(model, rank=job.lora)
        try:
            trainer = Distillation(student, job)
            trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
        except (ValueError, ImportError, NotImplementedError) as error:
            raise ConfigError(
                f"Trainer stopped: {str(error).strip().splitlines()[0]}",
                where="heal",
                hint="check `trainer`, or the checkpoint that `resume=True` goes on from",
            ) from error
        except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise _too_large(job.arguments) from error
            if isinstance(error, RuntimeError) and _WRITER not in str(error):
                raise
            raise CheckpointError(
                f"a checkpoint can't be written: {first_line(error)}",
                where=str(job.arguments.output_dir),
                hint="free some space, or choose another `run_dir`",
            ) from error
        # Mixed precision wraps the forward; what is saved and measured is the plain one.
        trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
        proofs = () if job.lora is None else (_merge(student, model, job.sample),)
    model.zero_grad(set_to_none=True)
    model.eval()
    _refuse_diverged(model)
    return Trained(int(trainer.state.global_step), proofs)


def _too_large(arguments: TrainingArguments) -> MemoryLimitError:
    """Return the error for batches that memory doesn't hold with their gradients: steps depend on them, so none is halved."""
    rows, gathered = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    smaller = (
        f"`batch_size={rows // 2}` and `trainer=gradient_accumulation_steps={2 * gathered}` make the same steps"
        if rows > 1
        else "use a smaller `max_length`, `lora=8`, or a `device` with more memory"
    )
    return MemoryLimitError(
        f"memory ran out while training on batches of {rows} row(s)", where="heal", hint=smaller
    )


@torch.no_grad()
def _merge(student: Any, model: PreTrainedModel, sample: Mapping[str, Tensor]) -> Proof:
    """Merge the adapters of ``student`` into ``model``, and compare the two before weights of half precision are rounded."""
    student.eval()
    rows = len(next(iter(sample.values())))
    with _single_precision(model):
        adapted = run(model, sample)  # the adapters are in it
        student.merge_and_unload()
        return merged_equals_adapted(adapted, run(model, sample), rows=rows)


def _refuse_diverged(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelError(
                f"the training diverged: {name} is not finite",
                where="heal",
                hint="use a smaller `learning_rate`; in half precision, `trainer=bf16=true` keeps weights in single",
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
        for parameter, is_trainable in before:
            parameter.requires_grad_(is_trainable)


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
            indices = torch.tensor(dead)

            def without(gradient: Tensor, dim: int = item.dim, indices: Tensor = indices) -> Tensor:
                return gradient.index_fill(dim, indices.to(gradient.device), 0)

            hooks.append(model.get_parameter(item.parameter).register_hook(without))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
