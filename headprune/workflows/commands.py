"""One function per command: settings in, values out."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.config import Recipe
from headprune.errors import HeadpruneError, PlanError
from headprune.evaluation import EvalResult
from headprune.export.gguf import Exported, embedding_rows, export_gguf, refuse_unusable_file
from headprune.export.layout import refuse_family
from headprune.export.vocabulary import read_vocabulary
from headprune.gate import Baseline, refuse_other_revision, refuse_other_rows
from headprune.inspection import inspect
from headprune.models.facts import fingerprint, weights_bytes
from headprune.models.load import load_model
from headprune.models.manifest import refuse_source, refuse_unusable_output
from headprune.models.tokenizer import load_tokenizer
from headprune.placement import refuse_offloaded
from headprune.planning import (
    check_constraints,
)
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.runs import named_scores, scores_file, unused_run, write_scores
from headprune.runtime.distributed import World
from headprune.scoring.catalogue import get_method
from headprune.subject import (
    Progress,
    Rows,
    Subject,
    calibration_rows,
    evaluation_rows,
    find_model,
    model_note,
    open_subject,
    rows_that_chose,
    separate_rows,
)
from headprune.tasks.catalogue import require_metric, task_row
from headprune.workflows.course import (
    by_method,
    check_course,
    constraints_of,
    is_tolerant,
    method_of,
)
from headprune.workflows.delivery import cut_and_save, measure
from headprune.workflows.planning import plan_for
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.scores import compute_each
from headprune.workflows.timing import refuse_lengths
from headprune.workflows.tolerance import plan_within, rows_in_three


def score(
    recipe: Recipe, *, progress: Progress, world: World | None = None
) -> tuple[tuple[HeadScores, ...], tuple[Path, ...]]:
    """Score every head on the calibration rows (methods that need no data read none), and write the scores.

    Args:
        recipe: The settings; with ``methods``, by each of them, in as few passes over the rows as they are made of.
        progress: How to talk meanwhile.
        world: The processes that share the work. The first one writes; the others return no paths.
    """
    world = world or World()
    recipe = with_recorded_rows(recipe, progress=progress)
    recipes = by_method(recipe, method_of(recipe))
    for by_one in recipes.values():
        check_course(by_one, world=world)
    if world.size > 1 and recipe.device in ("auto", "cuda"):
        recipe = recipe.model_copy(update={"device": world.device})
    with unused_run(recipe.run_dir) if world.is_main else nullcontext():
        return _score(recipe, recipes, progress=progress, world=world)


def _score(
    recipe: Recipe, recipes: Mapping[str, Recipe], *, progress: Progress, world: World
) -> tuple[tuple[HeadScores, ...], tuple[Path, ...]]:
    subject = open_subject(recipe, progress=progress)
    anatomy = inspect_for_pruning(subject, progress=progress)
    needs_rows = any(get_method(method).needs_rows for method in recipes)
    rows = calibration_rows(subject, progress=progress) if needs_rows else None
    found = compute_each(subject, recipes, anatomy, rows, progress=progress, world=world)
    scores = tuple(scored.scores for scored in found.values())
    if not world.is_main:
        return scores, ()
    paths = write_scores(scores, recipe.run_dir)
    for scored in found.values():
        scored.discard_journal()
    return scores, paths


def inspect_for_pruning(subject: Subject, *, progress: Progress) -> Anatomy:
    """Return the proven anatomy, and say what is left out of it."""
    return anatomy_of(subject.model, name=subject.source.name, progress=progress)


def anatomy_of(model: PreTrainedModel, *, name: str, progress: Progress) -> Anatomy:
    """Return the proven anatomy of the model called ``name``, and say what is left out of it."""
    anatomy = inspect(model)
    for path, reason in anatomy.refused.items():
        progress.notify(f"left whole: {path}: {reason}")
    if not anatomy.heads:
        raise PlanError("the model has no head that can be pruned", where=name, hint="see above")
    return anatomy


def evaluate(recipe: Recipe, *, progress: Progress, baseline: Baseline | None = None) -> EvalResult:
    """Evaluate a model, pruned or not.

    Raises:
        ConfigError: The result couldn't be compared with ``baseline``; nothing was evaluated.
    """
    if recipe.eval_data is None:
        recipe = with_recorded_rows(recipe, progress=progress, measures=True)
    check_metric(recipe)
    subject = open_subject(recipe, progress=progress)
    refuse_lengths(subject)
    rows = evaluation_rows(subject, progress=progress)
    if baseline is not None:
        refuse_other_revision(baseline, model_note(subject))
        _refuse_other_rows(baseline, subject, rows)
    return measure(subject, rows, heads=_count_heads(subject.model), progress=progress)[0]


def check_metric(recipe: Recipe) -> None:
    """Refuse an unknown metric before any work is done."""
    if recipe.metric is not None:
        from headprune.tasks.metrics import load_metric

        if recipe.task is not None:
            predicted = task_row(recipe.task).predicts
            require_metric(
                recipe.metric, higher_is_better=recipe.higher_is_better, predicted=predicted
            )
        load_metric(recipe.metric, higher_is_better=recipe.higher_is_better)


def _count_heads(model: PreTrainedModel) -> int | None:
    """Return the number of heads, None where they can't be found: such a model is evaluated all the same."""
    try:
        return len(inspect(model).heads)
    except HeadpruneError:
        return None


def export(recipe: Recipe, *, gguf: Path, with_tokenizer: bool, progress: Progress) -> Exported:
    """Write a model as GGUF.

    Args:
        recipe: The settings; ``dtype`` is the file's too.
        gguf: The file.
        with_tokenizer: Whether the tokenizer goes into it.
        progress: How to talk meanwhile.

    Raises:
        ProofError: What was read back isn't the model; nothing was saved.
        UnsupportedError: The model or its tokenizer has something that can't be said there.
    """
    refuse_unusable_file(gguf, overwrite=recipe.overwrite)
    source = find_model(recipe)
    refuse_family(source.config, where=f"{source.directory}/config.json")
    tokenizer = load_tokenizer(source) if with_tokenizer else None
    model = load_model(
        source,
        auto_class="AutoModelForCausalLM",
        device="cpu",
        dtype=recipe.dtype,
        notify=progress.notify,
    )
    progress.notify(f"model {recipe.model} ({model.config.model_type})")
    vocabulary = None
    if tokenizer is not None:
        vocabulary = read_vocabulary(
            tokenizer, rows=embedding_rows(model), where=str(source.directory)
        )
    return export_gguf(
        model,
        gguf,
        vocabulary=vocabulary,
        name=Path(source.name).name or source.directory.absolute().name,
        overwrite=recipe.overwrite,
    )


def plan(
    recipe: Recipe, *, progress: Progress, show: Callable[[HeadScores, PruningPlan], None]
) -> PruningPlan:
    """Choose the heads that would go, and write nothing."""
    recipe = with_recorded_rows(recipe, progress=progress)
    check_course(recipe)
    check_metric(recipe)
    subject = open_subject(recipe, progress=progress)
    anatomy = inspect_for_pruning(subject, progress=progress)
    if is_tolerant(recipe):
        choosing, deciding, _reporting = rows_in_three(
            subject, progress=progress, chose=rows_that_chose(subject)
        )
        found, chosen = plan_within(
            subject, anatomy, choosing, deciding, progress=progress, keep_parts=False
        )
        show(found.scores, chosen)
        return chosen
    rows = calibration_rows(subject, progress=progress)
    return plan_for(subject, anatomy, rows, progress=progress, show=show, keep_parts=False)[1]


def prune(
    recipe: Recipe,
    *,
    progress: Progress,
    show: Callable[[HeadScores, PruningPlan], None],
    baseline: Baseline | None = None,
) -> Results:
    """Score, plan, cut, prove and save.

    Args:
        recipe: The settings; a budget and ``out`` must be there.
        progress: How to talk meanwhile.
        show: Called with scores and plan before anything is cut.
        baseline: What the results will be compared with; refused now if they can't be.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    recipe = with_recorded_rows(recipe, progress=progress)
    out = Path(recipe.out or "")
    refuse_unusable_output(out, overwrite=recipe.overwrite, notify=progress.notify)
    check_course(recipe)
    check_metric(recipe)
    subject = open_subject(recipe, progress=progress)
    refuse_lengths(subject)
    refuse_output(recipe, source=subject.source.directory)
    refuse_offloaded(subject.model, to="be cut")
    anatomy = inspect_for_pruning(subject, progress=progress)
    check_constraints(anatomy, constraints_of(recipe))
    chose = set(rows_that_chose(subject))
    if recipe.scores is not None:
        path = scores_file(recipe.scores, method=method_of(recipe))
        chose |= set(named_scores(path, fingerprint=fingerprint(subject.model)).rows)
    tolerant = is_tolerant(recipe)
    if tolerant:
        choosing, deciding, reporting = rows_in_three(subject, progress=progress, chose=chose)
    else:
        choosing, reporting = separate_rows(subject, progress=progress, chose=chose)
    if baseline is not None:
        _refuse_other_rows(baseline, subject, reporting)
    if tolerant:
        found, chosen = plan_within(
            subject, anatomy, choosing, deciding, progress=progress, keep_parts=True
        )
        show(found.scores, chosen)
    else:
        found, chosen = plan_for(
            subject, anatomy, choosing, progress=progress, show=show, keep_parts=True
        )
    results = cut_and_save(
        subject, anatomy, chosen, found.scores, choosing, reporting, out=out, progress=progress
    )
    found.discard_journal()
    return results


def _refuse_other_rows(baseline: Baseline, subject: Subject, rows: Rows) -> None:
    """Refuse to measure what couldn't be compared with the baseline.

    Raises:
        ConfigError: See above.
    """
    metric = subject.recipe.metric or subject.task.metric
    refuse_other_rows(baseline, metric=metric, limit=subject.recipe.limit, data=rows.note)


def refuse_output(recipe: Recipe, *, source: Path) -> None:
    """Refuse an output directory that holds the source, or whose disk is too small.

    Raises:
        CheckpointError: See above.
    """
    out = Path(recipe.out or "")
    refuse_source(out, source)
    refuse_unusable_output(out, overwrite=recipe.overwrite, needed_bytes=weights_bytes(source))
