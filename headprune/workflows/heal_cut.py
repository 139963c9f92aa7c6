"""The healing of ``prune --heal``: how many steps, of how many rows, and on which; the one place of its defaults."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headprune.anatomy.sites import Anatomy
from headprune.artefact import Heal, Proof, dump_json
from headprune.batch import Batch
from headprune.distillation.settings import (
    Checkpoints,
    last_checkpoint,
    open_checkpoints,
    parse_pairs,
    refuse_adapters,
)
from headprune.errors import DataError
from headprune.runs import FOLDER
from headprune.runtime.targets import exclusive
from headprune.tasks.rows import Example
from headprune.workflows.healing import (
    FEWEST_ROWS,
    Lesson,
    arguments_of,
    distil,
    saying_where,
)
from headprune.workflows.reading import Rows
from headprune.workflows.rows import RowParts
from headprune.workflows.session import Session
from headprune.workflows.teacher import Teacher

LEARNING_RATES = {"all": 3e-4, "attention": 1e-3, "lora": 1e-3}
BETAS = {"adam_beta1": 0.8, "adam_beta2": 0.95}
"""Of Adam's averages: over so few steps longer ones lag behind."""
TOKENS_PER_STEP = 2_048
FORWARDS = 30
"""So many forwards of the calibration rows ``auto`` takes: about three times what scoring does."""
FORWARDS_PER_STEP = 4
"""Of its own rows: one of the teacher, one of the student, and a backward, which is as much as two."""


def heal_cut(
    session: Session, teacher: Teacher, anatomy: Anatomy, parts: RowParts, sample: Batch
) -> tuple[Heal, tuple[Proof, ...], Checkpoints]:
    """Heal a model that was just cut, in place; a training of the same that was stopped goes on.

    Args:
        session: The cut model.
        teacher: The model as it was.
        anatomy: Of the cut model.
        parts: The rows.
        sample: A few rows that report, to prove on.

    Returns:
        What was done, what was proven of it, and checkpoints to be dropped once the model is saved.

    Raises:
        DataError: There are too few rows to train on.
        MemoryLimitError: Memory ran out on a single row.
    """
    settings = session.settings
    pool, apart = set_apart_of(parts)
    rows, own = _schedule(session, parts, pool)
    used = (*parts.calibrate.examples, *parts.decide.examples, *rows.examples, *apart)
    held_out = apart if len(apart) >= FEWEST_ROWS else (*parts.held_out, *apart)
    lesson = Lesson(session, teacher, anatomy, rows, held_out, used, sample)
    if settings.distill.lora is not None:
        refuse_adapters(anatomy)  # padded heads are there since it was cut
    facts = lesson.facts | {"schedule": own}
    digest = hashlib.sha256(dump_json(facts).encode()).hexdigest()[:16]
    folder = Path(settings.run.run_dir or FOLDER) / f"heal-{digest}"
    with (
        exclusive(folder, where=str(folder)),
        saying_where(folder, remedy="the same command goes on"),
    ):
        arguments = arguments_of(settings, folder, rates=LEARNING_RATES, own=own)
        stopped = last_checkpoint(folder) is not None
        checkpoints = open_checkpoints(folder, facts=facts, resume=stopped)
        if stopped:
            session.progress.notify(f"going on from {checkpoints.last}")
        healed, proofs = distil(lesson, arguments, checkpoints)
    return healed, proofs, checkpoints


def set_apart_of(parts: RowParts) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the rows to train on, and half as many others as calibrate, evenly spread: a tenth at most.

    These decide whether healing helped, where they are enough: calibration rows chose the heads, and find the cut too good.
    """
    rows, fitted = parts.train.examples, {example.input_digest for example in parts.fit}
    fresh = [i for i, example in enumerate(rows) if example.input_digest not in fitted]
    count = min(len(parts.calibrate.examples) // 2, len(fresh) // 10)
    apart = {fresh[place * len(fresh) // count] for place in range(count)}
    trained = tuple(example for i, example in enumerate(rows) if i not in apart)
    return trained, tuple(rows[i] for i in sorted(apart))


def _schedule(
    session: Session, parts: RowParts, pool: tuple[Example, ...]
) -> tuple[Rows, dict[str, Any]]:
    """Return the rows of ``pool`` that are trained on, and how many steps of how many that makes, as arguments of Trainer."""
    settings, spec = session.settings, session.settings.distill
    if len(pool) < FEWEST_ROWS:
        raise DataError(
            f"{len(pool)} rows are too few to train on",
            where=f"`heal={spec.heal}`",
            hint=f"give {FEWEST_ROWS} or more: texts of their own (`heal_data`), or more in `data`",
        )
    calibrated = parts.calibrate.examples
    tokens = sum(map(_num_tokens, session.batches(calibrated))) / len(calibrated)
    step = min(_power_of_two(TOKENS_PER_STEP / tokens, round), _power_of_two(len(pool), int))
    at_once = min(step, _power_of_two(settings.data.batch_size or step, int))
    given = parse_pairs(spec.trainer)
    at_once = given.get("per_device_train_batch_size", at_once)
    step = at_once * given.get("gradient_accumulation_steps", max(1, step // at_once))
    steps = spec.heal
    if not isinstance(steps, int):
        steps = max(1, round(FORWARDS * len(calibrated) / (FORWARDS_PER_STEP * step)))
    rows = parts.train.part(pool[: steps * step])
    if at_once > 1 and len(session.batches(rows.examples, batch_size=len(rows.examples))) > 1:
        at_once = 1  # rows of different length, and the model doesn't support padding
    return rows, {
        "max_steps": steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": step // at_once,
        **BETAS,
    }


def _power_of_two(value: float | int, rounded: Callable[[float], int]) -> int:
    """Return a power of two near a value: what it comes to can be halved again and again."""
    return int(2 ** rounded(math.log2(max(1, value))))


def _num_tokens(batch: Batch) -> int:
    real = batch.inputs.get("attention_mask")
    return batch.num_tokens if real is None else int(real.sum())
