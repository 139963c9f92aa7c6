"""Scores for a model: computed, or those that the user asks for by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headprune.anatomy import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Recipe
from headprune.errors import HeadpruneError, PlanError
from headprune.models.facts import fingerprint, versions
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.plans import HeadScores
from headprune.runs import FOLDER, LATEST, named_scores, scores_file
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.scoring.catalogue import METHODS, get_method
from headprune.subject import (
    Progress,
    Rows,
    Subject,
    model_note,
    rows_that_chose,
)
from headprune.tasks.distill import NO_OBJECTIVE, Objective
from headprune.tasks.rows import Example, noted_rows
from headprune.workflows.course import check_course, method_of, steps_fit, steps_of
from headprune.workflows.rounds import score_with_steps

# What must agree for scores to be of the rows that would be read now, and what it is called.
_SAME_ROWS = {"fingerprint": "rows (fingerprint)", "max_length": "max length", "task": "task"}


@dataclass(frozen=True)
class Scored:
    """Scores, and the journal of their computation: to be dropped once they are safe elsewhere."""

    scores: HeadScores
    journal: Journal | None = None

    def discard_journal(self) -> None:
        """Drop what an interrupted run would have gone on from."""
        if self.journal is not None:
            self.journal.drop()


def find_scores(
    subject: Subject, anatomy: Anatomy, rows: Rows, *, progress: Progress, keep_parts: bool
) -> Scored:
    """Return the scores that were asked for by name, or new ones: those of an earlier run never serve unasked.

    Args:
        subject: The model, with its recipe.
        anatomy: Where its heads are.
        rows: What to score on.
        progress: How to talk meanwhile.
        keep_parts: Whether parts of new scores are kept on disk as they are computed.

    Raises:
        PlanError: The latest run's are asked for, and they aren't those that the settings would make.
    """
    recipe = subject.recipe
    if recipe.scores is None:
        return compute_scores(subject, anatomy, rows, progress=progress, keep_parts=keep_parts)
    path = scores_file(recipe.scores, method=method_of(recipe))
    scores = named_scores(path, fingerprint=fingerprint(subject.model))
    compare(scores, recipe, path=path, metric=subject.task.metric, rows=rows, progress=progress)
    progress.notify(f"scores: {path} ({scores.method}, n = {scores.n:,})")
    if scores.n and not scores.rows:
        progress.notify(
            "careful: the scores don't say which rows they are from; some may report too"
        )
    steps = steps_of(recipe)
    if scores.steps is None and steps > 1:
        progress.notify(f"made once; --steps {steps} scores again as heads go")
    return Scored(scores)


def compare(
    scores: HeadScores,
    recipe: Recipe,
    *,
    path: Path,
    metric: str | None,
    rows: Rows | None,
    progress: Progress,
) -> None:
    """Say in what scores of a file aren't those that the settings would make now; the latest run's must be.

    Args:
        scores: The scores.
        recipe: The settings.
        path: The file.
        metric: The metric where the settings name none.
        rows: The rows that would be scored, where any are read.
        progress: How to talk.

    Raises:
        PlanError: The latest run's are asked for, and they aren't.
    """
    others = list(_differences(scores, recipe, metric=metric, rows=rows))
    if others and recipe.scores == LATEST:
        raise PlanError(
            f"the scores of the latest run aren't those that these settings would make: {'; '.join(others)}",
            where=f"--scores {LATEST} ({path})",
            hint=f"leave --scores out to score anew, or take them all the same: --scores {path}",
        )
    for other in others:
        progress.notify(f"careful: {other}")


def _differences(
    scores: HeadScores, recipe: Recipe, *, metric: str | None, rows: Rows | None
) -> Iterator[str]:
    """Yield in what scores aren't those that the settings would make now; a file that is named has its own method."""
    method = method_of(recipe) if recipe.scores == LATEST else recipe.method or scores.method
    pairs: list[tuple[str, Any, Any]] = [
        ("method", scores.method, method),
        ("objective", scores.objective, recipe.objective),
        ("normalisation", scores.normalize, recipe.normalize),
        ("seed", scores.seed, recipe.seed),
    ]
    if recipe.objective == scores.objective == "metric":
        pairs += [("metric", scores.metric, recipe.metric or metric or scores.metric)]
    if recipe.higher_is_better is not None and scores.higher_is_better is not None:
        pairs += [("higher is better", scores.higher_is_better, recipe.higher_is_better)]
    if scores.n and rows is not None:
        pairs += [(name, scores.data.get(key), rows.note[key]) for key, name in _SAME_ROWS.items()]
    if scores.method in METHODS and METHODS[scores.method].depends_on_batches:
        pairs += [("batch size", scores.data.get("batch_size", "not noted"), recipe.batch_size)]
    for name, made, asked in pairs:
        if made != asked:
            yield f"{name}: the scores have {_shown(made)}, the settings {_shown(asked)}"
    if not steps_fit(scores, recipe):
        how = "once"
        if scores.steps:
            between = (
                f"reconstructed ({scores.steps.reconstructed})"
                if scores.steps.reconstructed
                else "not reconstructed"
            )
            how = f"in {scores.steps.count} steps for {scores.steps.budget}, {between} in between"
        yield f"these heads were scored {how}, not as these settings would"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def compute_each(
    subject: Subject,
    recipes: Mapping[str, Recipe],
    anatomy: Anatomy,
    rows: Rows | None,
    *,
    progress: Progress,
    world: World | None = None,
) -> dict[str, Scored]:
    """Score by several methods; a pass over the data that several are made of is run once, and found again in the journal."""
    found: dict[str, Scored] = {}
    objective = _objective(subject, rows.examples) if rows else None
    for method, recipe in recipes.items():
        if len(recipes) > 1:
            progress.notify(f"{method}:")
        by_one = replace(subject, recipe=recipe)
        found[method] = compute_scores(
            by_one,
            anatomy,
            rows,
            progress=progress,
            world=world,
            is_first=not found,
            objective=objective,
        )
    return found


def compute_scores(
    subject: Subject,
    anatomy: Anatomy,
    rows: Rows | None,
    *,
    progress: Progress,
    keep_parts: bool = True,
    world: World | None = None,
    is_first: bool = True,
    objective: Objective | None = None,
) -> Scored:
    """Score every head on ``rows``; methods that need no data leave them aside.

    What is done lies beside the run, batch by batch: stopped at any moment, the same command goes on from there. Of any but the
    first of several methods what is found there isn't an earlier run's alone, and nothing is said of it.
    """
    recipe, world = subject.recipe, world or World()
    check_course(recipe, world=world)
    method = get_method(method_of(recipe))
    used = rows if method.needs_rows else None
    objective = (objective or _objective(subject, used.examples)) if used else NO_OBJECTIVE
    batches = objective.sampled_batches if method.differentiates else objective.batches
    journal = _journal(subject, anatomy, batches) if used and keep_parts else None
    done = journal.count() if journal else 0
    world.wait()  # before the first result of anyone is counted as an earlier run's
    if done and is_first:
        progress.notify(f"going on with a run that was stopped; batches done: {done}")
    context = RunContext(progress.track, progress.notify, journal, world, recipe.compile)
    try:
        found = score_with_steps(
            subject.model, anatomy, objective, recipe=recipe, method=method.name, context=context
        )
    except KeyboardInterrupt as stopped:
        if journal is not None and (done := journal.count()):
            stopped.add_note(_resumable(done))
        raise
    except HeadpruneError:
        if journal is not None and (done := journal.count()):
            progress.notify(_resumable(done))
        raise
    data = dict(used.note) if used else {}
    if method.depends_on_batches:
        data["batch_size"] = recipe.batch_size
    note = {
        "rows": noted_rows(used.examples if used else (), earlier=rows_that_chose(subject)),
        "data": data,
        "model": model_note(subject),
        "versions": versions(),
    }
    return Scored(found.model_copy(update=note), journal)


def _objective(subject: Subject, examples: Sequence[Example]) -> Objective:
    """Return what importance is about, as the settings say."""
    is_metric = subject.recipe.objective == "metric"
    return subject.metric_objective(examples) if is_metric else subject.objective(examples)


def _resumable(done: int) -> str:
    return f"batches done: {done}; the same command goes on from there"


def _journal(subject: Subject, anatomy: Anatomy, batches: Sequence[Batch]) -> Journal:
    """Return the journal of these scores: another model, other rows or settings, and it is another one.

    The method is none of these: passes have names, and those of the same name are the same, whatever is made of them.
    """
    recipe = subject.recipe
    facts = {
        "seed": recipe.seed,
        "heads": [str(head) for head in anatomy.heads],
        "model": model_note(subject),
        "batches": fingerprint_of_batches(batches),
        "objective": recipe.objective,
        "task": subject.task.name,
        "device": input_device(subject.model).type,
        "compile": recipe.compile,
        "versions": versions(),
    }
    return open_journal(Path(recipe.run_dir) if recipe.run_dir else FOLDER, facts=facts)
