"""The tasks there are, and which one a model was made for."""

from pathlib import Path
from typing import Any

from headprune.errors import ConfigError, ModelError, did_you_mean
from headprune.tasks import causal_lm, classification, similarity
from headprune.tasks.task import Task
from headprune.untrusted import read_json

TASKS: dict[str, Task] = {
    task.name: task for task in (similarity.TASK, classification.TASK, causal_lm.TASK)
}


def get_task(name: str, *, model_directory: Path | None = None) -> Task:
    """Return a task by name; a sentence-embedding model's own pooling is read from its directory.

    Raises:
        ConfigError: There is no such task.
        ModelError: The model pools in a way that isn't known.
    """
    if name not in TASKS:
        raise ConfigError(
            f"there is no task {name!r}", where="--task", hint=did_you_mean(name, TASKS)
        )
    if name == similarity.TASK.name and model_directory is not None:
        return similarity.with_pooling(_pooling(model_directory))
    return TASKS[name]


def detect_task(config: Any, *, model_directory: Path | None = None) -> str:
    """Return the name of the task that a model was made for, from the class it was saved as.

    Raises:
        ConfigError: It can't be told.
    """
    architectures = " ".join(getattr(config, "architectures", None) or [])
    if "ForSequenceClassification" in architectures:
        return classification.TASK.name
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return causal_lm.TASK.name
    if model_directory is not None and (model_directory / "modules.json").is_file():
        return similarity.TASK.name
    raise ConfigError(
        f"it can't be told what the model is for (it was saved as {architectures or 'nothing in particular'})",
        where="config.json: architectures",
        hint=f"say --task {' or --task '.join(TASKS)}",
    )


def _pooling(directory: Path) -> str:
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    settings = read_json(path, error=ModelError, hint="repair the file")
    modes = [
        name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True
    ]
    if isinstance(settings.get("pooling_mode"), str):  # newer sentence-transformers
        modes = [f"pooling_mode_{settings['pooling_mode']}"]
    known = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_cls": "cls",
    }
    if len(modes) != 1 or modes[0] not in known:
        raise ModelError(
            f"the model pools its tokens with {', '.join(modes) or 'nothing known'}",
            where=str(path),
            hint="mean and cls pooling are supported",
        )
    return known[modes[0]]
