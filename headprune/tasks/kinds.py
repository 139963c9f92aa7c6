"""The tasks there are, and which one a model was made for."""

from pathlib import Path
from typing import Any

from headprune.errors import ConfigError, did_you_mean
from headprune.tasks import causal_lm, classification, similarity
from headprune.tasks.embedder import read_embedder
from headprune.tasks.embedder_settings import embeds_sentences
from headprune.tasks.task import Task
from headprune.untrusted import module_entries

TASKS: dict[str, Task] = {
    task.name: task for task in (similarity.TASK, classification.TASK, causal_lm.TASK)
}


def get_task(
    name: str, *, model_directory: Path | None = None, config: Any = None, tokenizer: Any = None
) -> Task:
    """Return a task by name; what a sentence-embedding model does beside its transformer is read from its directory.

    Args:
        name: Its name.
        model_directory: The directory of the model, with ``modules.json`` where it is one of sentence-transformers.
        config: The model's config.
        tokenizer: The model's tokenizer.

    Raises:
        ConfigError: There is no such task.
        ModelError: The model embeds in a way that isn't known, or names code that isn't run.
    """
    if name not in TASKS:
        raise ConfigError(
            f"there is no task {name!r}", where="--task", hint=did_you_mean(name, TASKS)
        )
    if name == similarity.TASK.name:
        embedder = read_embedder(model_directory, config=config, tokenizer=tokenizer)
        return similarity.with_embedder(embedder)
    if model_directory is not None:
        module_entries(model_directory)
    return TASKS[name]


def detect_task(config: Any, *, model_directory: Path | None = None) -> str:
    """Return the name of the task that a model was made for: embedding where it says so, else by the class it was saved as.

    Raises:
        ConfigError: It can't be told.
    """
    if model_directory is not None and embeds_sentences(model_directory):
        return similarity.TASK.name
    architectures = " ".join(getattr(config, "architectures", None) or [])
    if "ForSequenceClassification" in architectures:
        return classification.TASK.name
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return causal_lm.TASK.name
    raise ConfigError(
        f"it can't be told what the model is for (it was saved as {architectures or 'nothing in particular'})",
        where="config.json: architectures",
        hint=f"say --task {' or --task '.join(TASKS)}",
    )
