"""``heal``: a pruned model learns from the one it came from; measured before and after, proven, and saved anew."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from headprune.config import Settings
from headprune.distillation.settings import Checkpoints, last_checkpoint, open_checkpoints
from headprune.errors import CheckpointError, DataError
from headprune.evaluation import metric_with_interval
from headprune.inspection import inspect
from headprune.models.manifest import refuse_unusable_output
from headprune.passes import Progress
from headprune.placement import weights_bytes
from headprune.plans import PruningPlan
from headprune.results import Results
from headprune.runs import FOLDER
from headprune.runtime.distributed import World
from headprune.runtime.targets import exclusive
from headprune.verify import heads_are_the_same, require
from headprune.workflows.evaluate import measure
from headprune.workflows.finish import (
    PROOF_ROWS,
    InMemory,
    Written,
    documents_of,
    finish,
    refuse_output,
)
from headprune.workflows.healing import (
    FEWEST_ROWS,
    Lesson,
    arguments_of,
    check_training,
    distil,
    refuse_training,
    saying_where,
)
from headprune.workflows.record import note_where, record_of, with_recorded_rows
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.session import open_session
from headprune.workflows.teacher import open_teacher, refuse_other_words

_TRAINING = Purpose(use="train", labelled=False, held_out=0.1)
_LEARNING_RATES = {"all": 5e-5, "attention": 1e-4, "lora": 1e-3}


def heal(
    settings: Settings, *, resume: bool, progress: Progress, world: World | None = None
) -> Results | None:
    """Train a pruned model towards its source (or go on from the last checkpoint of that), measure, prove and save.

    Of several processes, which share the rows of each step, the first one writes; the others return nothing.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    world = world or World()
    settings = with_recorded_rows(settings, progress=progress)
    run = settings.run
    out = Path(run.out or "")
    if world.is_main:
        refuse_unusable_output(out, overwrite=run.overwrite, notify=progress.notify)
    folder = Path(run.run_dir) if run.run_dir else FOLDER / f"heal-{out.name}"
    arguments = _arguments(settings, folder)
    with exclusive(folder, where=f"`run_dir={folder}`") if world.is_main else nullcontext():
        lesson, parts = _prepare(settings, progress=progress, world=world)
        if arguments.per_device_train_batch_size > 1:
            lesson.collate(parts.calibrate.examples)  # a refusal comes before the training
        checkpoints = _shared_checkpoints(world, folder, facts=lesson.facts, resume=resume)
        if checkpoints.last is not None:
            progress.notify(f"going on from {checkpoints.last}")
        results = _heal(lesson, parts, arguments, checkpoints)
        if results is not None and run.run_dir is None:
            checkpoints.drop()
        return results


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    """Return Trainer's arguments; a mistake in them is found before anything is loaded."""
    check_training(settings)
    own = {
        "num_train_epochs": settings.distill.epochs,
        "max_steps": settings.distill.max_steps,
        "per_device_train_batch_size": settings.data.batch_size,
    }
    return arguments_of(settings, folder, rates=_LEARNING_RATES, own=own)


def _prepare(settings: Settings, *, progress: Progress, world: World) -> tuple[Lesson, RowParts]:
    session = open_session(settings, progress=progress, world=world)
    if world.is_main:
        refuse_output(settings.run, source=session.source.directory)
    teacher = open_teacher(session)
    anatomy = inspect(session.model)
    refuse_training(session, anatomy, has_teacher=True)
    parts = separate_rows(session, _TRAINING)
    examples = parts.calibrate.examples
    refuse_other_words(session, teacher, examples[:FEWEST_ROWS])
    if len(examples) < FEWEST_ROWS:
        raise DataError(
            f"{len(examples)} rows are too few to train on",
            where="`data`",
            hint=f"give {FEWEST_ROWS} or more (`num_samples`)",
        )
    rows = replace(parts.calibrate, examples=parts.fit)
    sample = session.batches(parts.report.examples)[-1].take(PROOF_ROWS)
    return Lesson(session, teacher, anatomy, rows, parts.held_out, examples, sample), parts


def _shared_checkpoints(
    world: World, folder: Path, *, facts: Mapping[str, Any], resume: bool
) -> Checkpoints:
    """Return where the first process goes on from, who keeps the folder; the others must see the same there."""
    if world.is_main:
        found = open_checkpoints(folder, facts=facts, resume=resume)
    else:
        found = Checkpoints(folder, last_checkpoint(folder) if resume else None)
    step = int(found.last.name.rpartition("-")[2]) if found.last else 0
    if int(world.summed(torch.tensor(step if world.is_main else 0))) != step:
        raise CheckpointError(
            "this process doesn't see the checkpoint that the first one goes on from",
            where=f"`run_dir={folder}`",
            hint="choose a `run_dir` that all machines share",
        )
    return found


def _heal(
    lesson: Lesson, parts: RowParts, arguments: TrainingArguments, checkpoints: Checkpoints
) -> Results | None:
    session = lesson.session
    settings, source = session.settings, session.source
    heads = len(lesson.anatomy.heads)
    before, old = measure(session, parts.report, heads=heads, timed=False, note=session.note)
    with saying_where(checkpoints.folder, remedy="`resume` goes on from the last"):
        healed, proofs = distil(lesson, arguments, checkpoints)
    if not session.world.is_main:
        return None
    after, new = measure(session, parts.report, heads=heads, timed=False)
    seed = settings.data.seed
    difference = metric_with_interval(new, session.metric, seed=seed, other=old)
    anatomy = inspect(session.model)
    proofs = (*proofs, heads_are_the_same(lesson.anatomy, anatomy))
    require(proofs)

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(heads, len(anatomy.heads)),
            parameters=(before.parameters, after.parameters),
            before=before,
            after=after,
            difference=difference.value,
            difference_interval=difference.interval,
            proofs=(*proofs, *written.proofs),
            weights_bytes=(weights_bytes(source.directory), size),
            removed=(),
            loads_with=written.loads_with,
            auto_class=session.task.auto_class,
            calibration=parts.calibrate.note,
            heal=healed,
        )

    session.progress.notify("saving it, and loading it again in a fresh process")
    in_memory = InMemory(
        session.model,
        anatomy,
        source.root,
        splitter=session.tokenizer,
        inputs=lesson.sample.inputs,
        auto_class=session.task.auto_class,
        parameters=(before.parameters, 0),
    )
    return finish(
        Path(settings.run.out or ""),
        overwrite=settings.run.overwrite,
        write=in_memory.write,
        results=results,
        documents=partial(_documents, lesson),
    )


def _documents(lesson: Lesson, results: Results) -> dict[str, str]:
    """Return the files that describe the model; plan, scores and roles are copied from the pruned directory."""
    source, settings = lesson.session.source, lesson.session.settings
    note_where(settings, results=results, model=lesson.session.note)
    kept = {str(site.id): len(site.heads) for site in lesson.anatomy.sites}
    plan = PruningPlan(remove=(), kept_per_site=kept)
    texts = documents_of(results, plan, None, source=source, settings=record_of(settings))
    del texts["plan.json"]
    for name in ("scores.json", "roles.json", "plan.json"):
        if (source.directory / name).is_file():
            texts[name] = (source.directory / name).read_text(encoding="utf-8")
    return texts
