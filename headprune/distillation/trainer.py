"""Train a student towards its teacher with transformers' Trainer; ours is the loss, and what must not move meanwhile.

Importing Trainer takes longer than most commands do, so this module is imported where a training begins.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
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

from headprune.anatomy.sites import Anatomy
from headprune.artefact import Proof
from headprune.batch import forward
from headprune.distillation.settings import add_adapters
from headprune.distillation.teacher import DistillJob
from headprune.distillation.unchanged import (
    config_kept,
    dead_weight_kept,
    random_states_kept,
    single_precision,
    trainable_kept,
)
from headprune.errors import (
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    ModelError,
    first_line,
    is_out_of_memory,
)
from headprune.runtime.distributed import World, reaching_the_others
from headprune.verify import merged_equals_adapted, run

_WRITER = "inline_container.cc"
"""What torch.save names in an error when less could be written than it meant to."""
_REPORTED = {"loss": "loss", "eval_loss": "eval_loss", "learning_rate": "rate"}
SECONDS_BETWEEN_CHECKPOINTS = 300
"""A checkpoint is as large as the weights with their optimizer's states: about so often one is written, whatever a step takes."""


class Distillation(Trainer):
    """Trains towards a teacher; all else is Trainer's."""

    def __init__(self, model: Any, job: DistillJob) -> None:
        super().__init__(
            model=model,
            args=job.arguments,
            data_collator=job.collate,  # type: ignore[arg-type] # it takes any function of a list of rows
            train_dataset=job.examples,
            eval_dataset=job.held_out or None,
            callbacks=[_Reporter(job), *([_SavesByTime(job.world)] if job.saves_by_time else [])],
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
        model.eval()  # no dropout: the student learns the outputs of the whole teacher
        outputs = forward(model, inputs)
        with torch.no_grad():
            targets = forward(self._job.teacher, inputs)
        loss = self._job.distance(outputs, targets, inputs).mean()
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Return Trainer's scheduler for one step more, without its first, whose rate is 0 in a warm-up."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        scheduler: LRScheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        if isinstance(scheduler, LambdaLR):
            rates: list[Any] = [
                lambda step, rate=rate: rate(step + 1) for rate in scheduler.lr_lambdas
            ]
            scheduler = self.lr_scheduler = LambdaLR(scheduler.optimizer, rates)
        return scheduler

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the loss of a batch, for Trainer's own evaluation; there are no labels to predict."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


class _SavesByTime(TrainerCallback):
    """Asks for a checkpoint after a step, when the last one is long ago by the clock of the first process."""

    def __init__(self, world: World) -> None:
        self._last, self._world = time.monotonic(), world

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Ask for it; after the last step the healed model itself is about to be saved."""
        is_due = time.monotonic() - self._last >= SECONDS_BETWEEN_CHECKPOINTS
        is_due = bool(self._world.summed(torch.tensor(int(is_due and self._world.is_main))))
        if is_due and state.global_step < state.max_steps:
            self._last = time.monotonic()
            control.should_save = True


class _Reporter(TrainerCallback):
    """Reports the steps, and what Trainer logs."""

    def __init__(self, job: DistillJob) -> None:
        self._progress = job.progress
        self._steps: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_others: Any) -> None:
        """Begin with the step after the checkpoint's last."""
        steps = range(state.global_step, state.max_steps)
        self._steps = iter(self._progress.track(steps, "healing"))
        next(self._steps, None)

    def on_step_end(self, *_states: Any, **_others: Any) -> None:
        """Count the step."""
        next(self._steps, None)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **_others: Any,
    ) -> None:
        """Report the step, the loss, the rate, and the loss of the held-out rows where it was asked for."""
        values = {
            _REPORTED[name]: value for name, value in (logs or {}).items() if name in _REPORTED
        }
        if values:
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._progress.notify(f"step {state.global_step}/{state.max_steps}: {text}")


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
        stack.enter_context(random_states_kept())
        stack.enter_context(config_kept(model))
        set_seed(job.arguments.seed)
        student: Any = model
        if job.lora is None:
            stack.enter_context(trainable_kept(model, job.trained))
            stack.enter_context(single_precision(model))
            stack.enter_context(dead_weight_kept(model, anatomy))
        else:
            stack.enter_context(trainable_kept(model))
            student = add_adapters(model, rank=job.lora, within=job.trained)
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
                if job.lora is not None:
                    student.unload()
                raise _too_large(job.arguments) from error
            if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
                with reaching_the_others():
                    raise
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
    """Return the error for batches that memory doesn't hold with their gradients."""
    rows = arguments.per_device_train_batch_size
    return MemoryLimitError(
        f"memory ran out while training on batches of {rows} row(s)",
        where="heal",
        hint="use a smaller `max_length` or `batch_size`, `lora=8`, `heal_weights=attention`, or a `device` with more memory",
    )


@torch.no_grad()
def _merge(student: Any, model: PreTrainedModel, sample: Mapping[str, Tensor]) -> Proof:
    """Merge the adapters of ``student`` into ``model``, and compare the two before weights of half precision are rounded."""
    student.eval()
    for name, parameter in model.named_parameters():
        if ".base_layer." in name:  # merging writes into it, and the teacher may share it
            parameter.data = parameter.data.clone()
    rows = len(next(iter(sample.values())))
    with single_precision(model):
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
