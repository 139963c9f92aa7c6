"""How long forwards take: what a recipe asks to be timed, and at which sizes."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from headprune.artefact import Latency
from headprune.batch import Batch
from headprune.errors import ConfigError
from headprune.footprint import latency_ms, sizes
from headprune.subject import Progress, Subject


def refuse_lengths(subject: Subject) -> None:
    """Refuse, before any work, to time rows that are longer than the model reads.

    Raises:
        ConfigError: Such a length is asked for.
    """
    for length in subject.recipe.latency_length:
        asked = subject.recipe.model_copy(update={"max_length": length})
        most = replace(subject, recipe=asked).max_length
        if most < length:
            raise ConfigError(
                f"the model reads at most {most} tokens",
                where=f"--latency-length {length}",
                hint=f"use --latency-length {most} or less",
            )


def times_of(
    models: Sequence[PreTrainedModel],
    subject: Subject,
    *,
    batches: Sequence[Batch],
    progress: Progress,
) -> list[dict[str, Latency]]:
    """Return for each model how long its forwards take, in turns; nothing where the recipe asks for none."""
    recipe = subject.recipe
    if not recipe.latency:
        return [{} for _ in models]
    wanted = sizes(batches, lengths=recipe.latency_length, rows=recipe.latency_batch)
    return latency_ms(models, sizes=wanted, track=progress.track, notify=progress.notify)
