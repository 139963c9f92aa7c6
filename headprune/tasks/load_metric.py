"""A metric by its name: built in, or one of :func:`evaluate.load`, tried before any work; and what importance is about."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from headprune.batch import Batch
from headprune.errors import ConfigError, did_you_mean, first_line, with_type
from headprune.late import load_function
from headprune.scoring.catalogue import ObjectiveName
from headprune.tasks.catalogue import METRICS, MetricRow, Predicted, require_metric
from headprune.tasks.distill import Objective, predictions_as_loss, with_teacher_targets
from headprune.tasks.metrics import Metric, Numbers, UndefinedMetricError
from headprune.tasks.task import Task

_INPUTS = ("predictions", "references")
_MAX_CLASSES_TRIED = 50


def _load_custom_metric(name: str, *, higher_is_better: bool) -> Metric:
    """Load a metric of ``evaluate``; what it compares is read from the features that it declares."""
    import evaluate  # takes seconds, and most metrics are built in

    if Path(name).name == name and Path(name).suffix != ".py" and Path(name).exists():
        raise ConfigError(
            f"{name} lies here, and may be meant as a metric of the hub: what lies here would be run",
            where=f"`metric={name}`",
            hint=f"say ./{name} to run it, or start the command in another directory",
        )
    try:
        module = evaluate.load(name, keep_in_memory=True)
    # The evaluate library raises FileNotFoundError, ConnectionError, ImportError and more.
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the metric {name!r} can't be loaded: {first_line(error)}",
            where="`metric`",
            hint=f"repair the file, which must define one evaluate.Metric: {name}"
            if Path(name).exists()
            else f"check the name and the network; built in: {did_you_mean(name, METRICS)}",
        ) from error
    takes = _what_it_takes(module, name)

    def compute(predictions: Numbers, references: Numbers) -> float:
        sides: list[NDArray[Any]] = [predictions, references]
        if takes == "classes":
            sides = [np.rint(side).astype(int) for side in sides]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes without examples
                result = module.compute(**dict(zip(_INPUTS, sides, strict=True)))
        except (Exception, SystemExit) as error:  # somebody's code
            raise UndefinedMetricError(
                f"the metric {name!r} fails on {len(references)} rows: {with_type(error)}",
                where=f"`metric={name}`",
                hint=f"choose another `metric`, or write it for {takes} alone: one prediction and one reference an example",
            ) from error
        return _number(result, name)

    row = MetricRow(
        name=name,
        help="a metric of evaluate",
        function="",
        higher_is_better=higher_is_better,
        takes=(takes,),
    )
    return Metric(row, compute)


def _try_metric(metric: Metric, *, classes: int | None) -> None:
    """Run a metric on a few rows, of numbers, or in which every class occurs."""
    references = np.linspace(0.0, 1.0, 8)
    predictions = references[::-1] ** 2
    if classes is not None:
        every = np.arange(min(max(classes, 2), _MAX_CLASSES_TRIED), dtype=np.float64)
        references, predictions = np.tile(every, 2), np.concatenate([every, np.roll(every, 1)])
    try:
        metric.compute(predictions, references)
    except UndefinedMetricError as error:
        rows = "rows of numbers" if classes is None else f"rows of {classes} classes"
        raise ConfigError(
            error.what.replace("rows:", f"{rows} that were tried first:", 1),
            where=error.where,
            hint=error.hint,
        ) from error


def _what_it_takes(module: Any, name: str) -> Predicted:
    """Return what a metric of ``evaluate`` compares, by its features."""
    import datasets

    def kind(feature: Any) -> str:
        dtype = str(feature.dtype) if isinstance(feature, datasets.Value) else "other"
        if isinstance(feature, datasets.ClassLabel) or dtype.startswith(("int", "uint", "bool")):
            return "classes"
        return "numbers" if dtype.startswith("float") else dtype

    forms = module.features if isinstance(module.features, list) else [module.features]
    for form in forms:
        kinds = {kind(form[key]) for key in _INPUTS} if set(form) == set(_INPUTS) else set()
        if kinds == {"classes"}:
            return "classes"
        if kinds == {"numbers"}:
            return "numbers"
    taken = " or ".join(
        ", ".join(f"{key} ({getattr(value, 'dtype', 'a list')})" for key, value in form.items())
        for form in forms
    )
    raise ConfigError(
        f"the metric {name!r} takes {taken}, and a task gives predictions and references, one number each an example",
        where=f"`metric={name}`",
        hint=f"choose another `metric`; built in: {', '.join(METRICS)}",
    )


def _number(result: Any, name: str) -> float:
    """Return the one number that a metric gives."""
    key = name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".py")
    values = result if isinstance(result, dict) else {key: result}
    value = values.get(key, next(iter(values.values())) if len(values) == 1 else None)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ConfigError(
            f"the metric {name!r} gives {', '.join(map(str, values))}, and none of them is one number called {key}",
            where=f"`metric={name}`",
            hint=f"write it so that it returns {{{key!r}: number}}",
        )
    return float(value)


def load_metric(
    name: str,
    *,
    higher_is_better: bool | None = None,
    predicted: Predicted | None = None,
    classes: int | None = None,
) -> Metric:
    """Return a metric by name: a built-in one, or one that :func:`evaluate.load` knows (a hub id or a path).

    Args:
        name: The metric.
        higher_is_better: Whether higher is better; required for metrics that aren't built in.
        predicted: What it will be given; one that isn't built in is tried on a few such rows.
        classes: How many classes the model has, where it predicts classes.

    Raises:
        ConfigError: The metric or its direction is unknown, the direction is contradicted, or it takes other values, or fails.
    """
    require_metric(name, higher_is_better=higher_is_better, predicted=predicted)
    if name in METRICS:
        metric = Metric(METRICS[name], load_function(METRICS[name].function))
    else:
        metric = _load_custom_metric(name, higher_is_better=bool(higher_is_better))
        if predicted in metric.row.takes:
            _try_metric(metric, classes=classes if predicted == "classes" else None)
        require_metric(name, predicted=predicted, row=metric.row)
    return metric.for_classes(tuple(map(float, range(classes)))) if classes else metric


def metric_for(
    task: Task, config: Any, *, name: str | None = None, higher_is_better: bool | None = None
) -> Metric:
    """Return a metric (or the task's own) of what a task's model predicts.

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
    """Return what importance is about."""
    if kind == "distill":
        return with_teacher_targets(model, task.distillation, batches, seed=seed)
    if kind == "metric":
        predictions = task.predicted_loss or predictions_as_loss(task.predict)
        return Objective(batches, batches, predictions, metric)
    return Objective(batches, batches, task.loss)
