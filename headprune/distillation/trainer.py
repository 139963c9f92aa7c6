"""transformers' Trainer with our loss. A file of its own: importing Trainer takes longer than most commands do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from headprune.batch import forward
from headprune.distillation.train import Course


class Distillation(Trainer):
    """Trains towards a teacher; all else is Trainer's."""

    def __init__(self, model: Any, course: Course) -> None:
        super().__init__(
            model=model,
            args=course.arguments,
            data_collator=course.collate,  # type: ignore[arg-type] # it takes any function of a list of rows
            train_dataset=course.examples,
            eval_dataset=course.held_out or None,
            callbacks=[_Talk(course)],
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, where data goes
        self.model_accepts_loss_kwargs = False  # our loss is the mean over a batch
        self._course = course
        course.teacher.to(course.arguments.device)  # type: ignore[arg-type] # typed as a decorator

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean distance to the teacher over the rows of a batch."""
        del num_items_in_batch
        model.eval()  # no dropout: what the teacher says of the whole, the student is to say of the whole
        outputs = forward(model, inputs)
        with torch.no_grad():
            wanted = forward(self._course.teacher, inputs)
        loss = self._course.distance(outputs, wanted, inputs).mean()
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


class _Talk(TrainerCallback):
    """Says what Trainer logs."""

    def __init__(self, course: Course) -> None:
        self._say = course.notify

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_others: Any,
    ) -> None:
        """Tell the step, the loss, and the loss of the held-out rows where it was asked for."""
        del args, control
        told = (
            [f"{name} {logs[name]:.4g}" for name in ("loss", "eval_loss") if name in (logs or {})]
            if logs
            else []
        )
        if told and self._say is not None:
            self._say(f"step {state.global_step}/{state.max_steps}: {', '.join(told)}")
