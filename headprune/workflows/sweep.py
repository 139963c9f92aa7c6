"""The metric against the share of heads kept, method by method: scored once, cut at many points by masking."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headprune.anatomy import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import BUDGETS, Recipe
from headprune.errors import PlanError
from headprune.models.facts import versions
from headprune.models.manifest import output_directory, refuse_unusable_output, write_manifest
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.planning import make_plan
from headprune.planning.constraints import as_dict
from headprune.plans import HeadScores
from headprune.report.charts import sweep_picture
from headprune.results import Curve, Sweep
from headprune.runs import FOLDER, file_name, next_run
from headprune.runtime.journal import Journal, open_journal
from headprune.subject import (
    Progress,
    Rows,
    Subject,
    model_note,
    open_subject,
    rows_that_chose,
    separate_rows,
)
from headprune.workflows.commands import check_metric, inspect_for_pruning
from headprune.workflows.course import by_method, check_course
from headprune.workflows.curves import constraints_at, measure_curves
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.scores import compute_each

POINTS = tuple(tenth / 10 for tenth in range(10, 0, -1))
# They need no data: what any method must beat.
# The best order where heads are masked and nothing is reconstructed.
_MASKED = "gradient"
_CONTROLS = ("magnitude", "random")


def sweep(recipe: Recipe, *, progress: Progress) -> tuple[Sweep, Path]:
    """Score by several methods on the calibration rows, and measure each one's cuts on the rows that report, by masking.

    What is done lies beside the runs, batch by batch: stopped at any moment, the same command goes on from there.

    Args:
        recipe: The settings; ``methods`` (by default ``method`` and two that need no data) and ``points`` (by default every
            tenth that the model and the constraints allow) say what is compared.
        progress: How to talk meanwhile.

    Returns:
        The curves, and the directory that holds them with their picture and each method's scores.

    Raises:
        PlanError: A point that was asked for can't be cut.
    """
    recipe = with_recorded_rows(recipe, progress=progress)
    out = Path(recipe.out) if recipe.out else next_run("sweep")
    refuse_unusable_output(out, overwrite=recipe.overwrite, notify=progress.notify)
    check_metric(recipe)
    recipe = _scored_once(recipe, progress=progress)
    recipes = recipes_of(recipe)
    for by_one in recipes.values():
        check_course(by_one)
    subject = open_subject(recipe, progress=progress)
    anatomy = inspect_for_pruning(subject, progress=progress)
    keeps = lawful_points(anatomy, subject.recipe, progress=progress)
    choosing, reporting = separate_rows(
        subject, progress=progress, chose=set(rows_that_chose(subject))
    )
    scored = compute_each(subject, recipes, anatomy, choosing, progress=progress)
    scores = {method: found.scores for method, found in scored.items()}
    batches = subject.batches(reporting.examples)
    journal = _journal(subject, anatomy, batches)
    if done := journal.count():
        progress.notify(f"going on with a sweep that was stopped; batches done: {done}")
    context = RunContext(progress.track, progress.notify, journal, compile=recipe.compile)
    curves, better = measure_curves(
        subject, anatomy, scores, keeps=keeps, batches=batches, context=context
    )
    found = _noted(subject, anatomy, curves, choosing, reporting, higher_is_better=better)
    out = Path(recipe.out) if recipe.out else next_run("sweep")  # another may have taken the number
    _write(found, scores, out, overwrite=recipe.overwrite)
    for each in scored.values():
        each.discard_journal()
    journal.drop()
    return found, out


def recipes_of(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe of every method that is compared.

    Raises:
        ConfigError: There is no such method.
    """
    return by_method(recipe, recipe.method or _MASKED, *_CONTROLS)


def lawful_points(anatomy: Anatomy, recipe: Recipe, *, progress: Progress) -> tuple[float, ...]:
    """Return the keep ratios of a sweep, from the whole model (always there) on: those that ``prune`` could cut.

    Raises:
        PlanError: One that was asked for can't be cut, or none of the default grid, of which others are left out.
    """
    flat = HeadScores(
        method="none", heads=anatomy.heads, values=(0.0,) * len(anatomy.heads), n=0, seed=0
    )
    asked = sorted({*(recipe.points or POINTS)} - {1.0}, reverse=True)
    lawful, refused = [1.0], []
    for keep in asked:
        try:
            make_plan(flat, anatomy, constraints=constraints_at(recipe, keep))
        except PlanError as error:
            if recipe.points:
                raise
            refused.append(error)
        else:
            lawful.append(keep)
    if len(refused) == len(asked) and refused:
        raise refused[-1]
    for why in refused:
        progress.notify(f"left out: {why.what}")
    return tuple(lawful)


def _scored_once(recipe: Recipe, *, progress: Progress) -> Recipe:
    """Return the recipe without what leads to one cut only."""
    single: dict[str, Any] = {
        "steps": 1,
        "reconstruct": "none",
        "allow_bias": False,
        "rearrange": False,
    }
    single |= dict.fromkeys(name for name in BUDGETS if name != "max_drop")
    left = [
        name
        for name, value in single.items()
        if getattr(recipe, name) is not None and getattr(recipe, name) != value
    ]
    if left:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in left)
        progress.notify(
            f"left aside, for heads are scored once, and masked at every point: {named}"
        )
    return recipe.model_copy(update={**single, "run_dir": None})


def _journal(subject: Subject, anatomy: Anatomy, batches: Sequence[Batch]) -> Journal:
    """Return the journal of these evaluations; which cuts they are of is in the names that it keeps."""
    facts = {
        "sweep": subject.task.name,
        "heads": [str(head) for head in anatomy.heads],
        "model": model_note(subject),
        "batches": fingerprint_of_batches(batches),
        "device": input_device(subject.model).type,
        "compile": subject.recipe.compile,
        "versions": versions(),
    }
    return open_journal(FOLDER, facts=facts)


def _noted(
    subject: Subject,
    anatomy: Anatomy,
    curves: Sequence[Curve],
    choosing: Rows,
    reporting: Rows,
    *,
    higher_is_better: bool,
) -> Sweep:
    recipe = subject.recipe
    return Sweep(
        metric=subject.metric,
        higher_is_better=higher_is_better,
        n=len(reporting.examples),
        num_heads=len(anatomy.heads),
        max_drop=recipe.max_drop and recipe.max_drop.of(curves[0].points[0].value),
        curves=tuple(curves),
        constraints=as_dict(constraints_at(recipe, 1.0)),
        objective=recipe.objective,
        normalize=recipe.normalize,
        limit=recipe.limit,
        seed=recipe.seed,
        calibration=choosing.note,
        data=reporting.note,
        model=model_note(subject),
        versions=versions(),
    )


def _write(found: Sweep, scores: Mapping[str, HeadScores], out: Path, *, overwrite: bool) -> None:
    with output_directory(out, overwrite=overwrite) as staging:
        (staging / "sweep.json").write_text(found.to_json(), encoding="utf-8")
        for method, values in scores.items():
            (staging / file_name(method)).write_text(values.to_json(), encoding="utf-8")
        for kind in ("png", "svg"):
            (staging / f"sweep.{kind}").write_bytes(sweep_picture(found, kind=kind))
        write_manifest(staging)
