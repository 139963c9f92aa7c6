"""The tasks there are, and which one a model was made for."""

import re
from pathlib import Path
from typing import Any

from headprune.errors import ConfigError, did_you_mean
from headprune.tasks import causal_lm, classification, regression, similarity
from headprune.tasks.embedder import read_embedder
from headprune.tasks.embedder_settings import embeds_sentences
from headprune.tasks.task import Task
from headprune.untrusted.directories import module_entries

TASKS: dict[str, Task] = {
    task.name: task
    for task in (similarity.TASK, classification.TASK, regression.TASK, causal_lm.TASK)
}

_IN_PYTHON = "score it in Python by a loss of your own: headprune.score(model, batches, loss=...)"
_HEAD = re.compile(
    "For(MaskedLM|TokenClassification|QuestionAnswering|MultipleChoice|NextSentencePrediction|SequenceClassification)$"
)
_OWN_HEADS = {
    "similarity": (),
    "classification": ("ForSequenceClassification",),
    "regression": ("ForSequenceClassification",),
    "causal-lm": (),
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
        return of_outputs(classification.TASK.name, config)
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return causal_lm.TASK.name
    raise ConfigError(
        f"there is no task here for a model saved as {architectures or 'nothing in particular'}",
        where="config.json: architectures",
        hint=_what_to_do(architectures),
    )


def of_outputs(name: str, config: Any) -> str:
    """Return the task; of a model with one output it is a number that is predicted, and no class."""
    one = name == classification.TASK.name and config.num_labels == 1
    return regression.TASK.name if one else name


def refuse_other_head(name: str, config: Any, *, model_directory: Path) -> None:
    """Refuse a task for which a model that was saved with the head of another would lose it.

    Raises:
        ConfigError: See above.
    """
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    head = _HEAD.search(architecture)
    if name not in TASKS or head is None or head.group() in _OWN_HEADS[name]:
        return
    if name == similarity.TASK.name and (model_directory / "modules.json").is_file():
        return
    raise ConfigError(
        f"the model was saved as {architecture}, and {name} would run it without that head",
        where=f"--task {name}",
        hint=_what_to_do(architecture),
    )


def _what_to_do(architecture: str) -> str:
    """Return what to do with a model that was saved as ``architecture``."""
    head = _HEAD.search(architecture)
    if head is None:
        return f"say what it is for: --task {', --task '.join(TASKS)}; or {_IN_PYTHON}"
    if any(head.group() in heads for heads in _OWN_HEADS.values()):
        return "leave --task out: the config tells it"
    return f"fine-tune it for a task that is here ({', '.join(TASKS)}), or {_IN_PYTHON}"
