"""What a task is judged by, and what importance is about: the loss, the metric, or the distance from the model as it is."""

from typing import Any

from transformers import PreTrainedModel

from headprune.batch import Batch
from headprune.scoring.catalogue import ObjectiveName
from headprune.tasks.distill import Objective, predictions_as_loss, with_teacher_targets
from headprune.tasks.load_metric import load_metric
from headprune.tasks.metrics import Metric
from headprune.tasks.task import Task


def metric_for(
    task: Task, config: Any, *, name: str | None = None, higher_is_better: bool | None = None
) -> Metric:
    """Return a metric of what a task's model predicts.

    Args:
        task: The task.
        config: The model's, which knows the classes.
        name: The metric; None for the task's own.
        higher_is_better: Which direction is better, of a metric that isn't built in.

    Raises:
        ConfigError: It doesn't compare what the task predicts, or fails on a few rows.
    """
    return load_metric(
        name or task.metric,
        higher_is_better=higher_is_better,
        predicted=task.row.predicts,
        classes=task.num_classes(config),
    )


def objective_for(
    task: Task,
    model: PreTrainedModel,
    batches: tuple[Batch, ...],
    *,
    kind: ObjectiveName,
    metric: Metric,
    seed: int,
) -> Objective:
    """Return what importance is about.

    Args:
        task: What the model is for.
        model: The model as it is.
        batches: The rows.
        kind: Which of the three.
        metric: The metric, where it is that.
        seed: Of what is drawn around the outputs of the model as it is.
    """
    if kind == "distill":
        return with_teacher_targets(model, task.distillation, batches, seed=seed)
    if kind == "metric":
        predictions = task.predicted_loss or predictions_as_loss(task.predict)
        return Objective(batches, batches, predictions, metric)
    return Objective(batches, batches, task.loss)
