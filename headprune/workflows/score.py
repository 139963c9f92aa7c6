"""Scores for a model: computed once or in steps, or read from a file that the user names."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Constraints, ScoreSpec, Settings
from headprune.config.checks import methods_of, num_steps
from headprune.errors import PlanError
from headprune.passes import Progress, resumable
from headprune.placement import input_device, versions
from headprune.plans import HeadScores
from headprune.runs import FOLDER, LATEST, named_scores, scores_file, unused_run, write_scores
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.scoring.catalogue import METHODS, get_method
from headprune.tasks.distill import NO_OBJECTIVE, Objective
from headprune.tasks.rows import noted_rows
from headprune.workflows.reading import Rows
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.roles import FoundRoles, find_roles, protecting
from headprune.workflows.rows import Purpose, separate_rows
from headprune.workflows.session import Session, open_session
from headprune.workflows.stepwise import (
    Scoring,
    check_settings,
    method_of,
    score_with_steps,
    steps_fit,
)

# Facts about rows that must be the same for scores to fit the current rows, and their names in messages.
_SAME_ROWS = {"fingerprint": "rows (fingerprint)", "max_length": "max length", "task": "task"}


@dataclass(frozen=True)
class Scored:
    """Scores, and the journal of their computation: to be dropped once they are safe elsewhere."""

    scores: HeadScores
    journal: Journal | None = None

    def discard_journal(self) -> None:
        """Delete the journal, which an interrupted run would resume from."""
        if self.journal is not None:
            self.journal.drop()


def score(
    settings: Settings, *, progress: Progress, world: World | None = None
) -> tuple[tuple[HeadScores, ...], tuple[Path, ...]]:
    """Score every head by each method on the calibration rows (methods that need no data read none), and write the scores.

    Of several processes the first one writes; the others return no paths.
    """
    world = world or World()
    settings = with_recorded_rows(settings, progress=progress)
    check_settings(settings, compares=True, world=world)
    run_dir = settings.run.run_dir
    with unused_run(run_dir) if world.is_main else nullcontext():
        scored, found = score_rows(settings, progress=progress, world=world)
        scores = tuple(one.scores for one in scored)
        if not world.is_main:
            return scores, ()
        paths = write_scores(scores, run_dir)
        for one in scored:
            one.discard_journal()
        found.discard_journal()
        return scores, paths


def score_rows(
    settings: Settings, *, progress: Progress, world: World
) -> tuple[tuple[Scored, ...], FoundRoles]:
    """Score every head by each method, and write nothing; returns the roles that steps protect, too."""
    sections = methods_of(settings.score)
    session = open_session(settings, progress=progress, world=world)
    _ = session.anatomy  # a model without heads is refused before rows are read
    rows, plan, found = None, settings.plan, FoundRoles()
    if any(get_method(method_of(section)).needs_rows for section in sections):
        rows = separate_rows(session, Purpose(reports=False)).calibrate
    if any(num_steps(section, plan) > 1 for section in sections):
        if plan.protect_role:
            rows = rows or separate_rows(session, Purpose(reports=False)).calibrate
            found = find_roles(session, rows, shows=False)
        plan = protecting(session, found.roles)
    return tuple(score_each(session, sections, rows, plan=plan).values()), found


def find_scores(
    session: Session, rows: Rows, *, plan: Constraints, keep_parts: bool = True
) -> Scored:
    """Return the scores that the settings name, or compute them. Scores of an earlier run are reused only if you ask.

    With ``keep_parts``, finished batches are kept on disk, to resume an interrupted run.

    Raises:
        PlanError: The latest run's scores are asked for, and the settings would make other scores.
    """
    settings, notify = session.settings, session.progress.notify
    if settings.run.scores is None:
        return compute_scores(session, settings.score, rows, plan=plan, keep_parts=keep_parts)
    path, scores = scores_by_name(session)
    compare(
        scores,
        settings,
        plan,
        path=path,
        metric=session.task.metric,
        rows=rows,
        progress=session.progress,
    )
    notify(f"scores: {path} ({scores.method}, n = {scores.n:,})")
    if scores.n and not scores.rows:
        notify("careful: the scores don't say which rows they are from; some may report too")
    steps = num_steps(settings.score, plan)
    if scores.steps is None and steps > 1:
        notify(f"these scores were made in one step; without `scores`, there would be {steps}")
    return Scored(scores)


def scores_by_name(session: Session) -> tuple[Path, HeadScores]:
    """Return the scores that the settings name, which must be of this model, and their file."""
    settings = session.settings
    path = scores_file(str(settings.run.scores), method=method_of(settings.score))
    return path, named_scores(path, fingerprint=session.note["fingerprint"])


def compare(
    scores: HeadScores,
    settings: Settings,
    plan: Constraints,
    *,
    path: Path,
    metric: str | None,
    rows: Rows | None,
    progress: Progress,
) -> None:
    """Report how scores of a file differ from the scores that the settings would make; the latest run's mustn't differ.

    Raises:
        PlanError: The latest run's scores are asked for, and they differ.
    """
    differences = list(_differences(scores, settings, plan, metric=metric, rows=rows))
    if differences and settings.run.scores == LATEST:
        raise PlanError(
            f"the scores of the latest run aren't those that these settings would make: {'; '.join(differences)}",
            where=f"`scores={LATEST}` ({path})",
            hint=f"leave `scores` out to score anew, or take them all the same: `scores={path}`",
        )
    for difference in differences:
        progress.notify(f"careful: {difference}")


def _differences(
    scores: HeadScores,
    settings: Settings,
    plan: Constraints,
    *,
    metric: str | None,
    rows: Rows | None,
) -> Iterator[str]:
    """Yield how scores differ from the scores that the settings would make; scores in a named file may be of any method."""
    spec, data = settings.score, settings.data
    is_latest = settings.run.scores == LATEST
    pairs: list[tuple[str, Any, Any]] = [
        ("method", scores.method, method_of(spec) if is_latest else spec.method or scores.method),
        ("objective", scores.objective, spec.objective),
        ("normalisation", scores.normalize, spec.normalize),
        ("seed", scores.seed, data.seed),
    ]
    if spec.objective == scores.objective == "metric":
        pairs += [("metric", scores.metric, data.metric or metric or scores.metric)]
    if data.higher_is_better is not None and scores.higher_is_better is not None:
        pairs += [("higher is better", scores.higher_is_better, data.higher_is_better)]
    if scores.n and rows is not None:
        pairs += [(name, scores.data.get(key), rows.note[key]) for key, name in _SAME_ROWS.items()]
    if scores.method in METHODS and METHODS[scores.method].depends_on_batches:
        pairs += [("batch size", scores.data.get("batch_size", "not noted"), data.batch_size)]
    for name, made, asked in pairs:
        if made != asked:
            yield f"{name}: the scores have {_shown(made)}, the settings {_shown(asked)}"
    if not steps_fit(scores, settings, plan):
        manner = "once"
        if scores.steps:
            between = (
                f"reconstructed ({scores.steps.reconstructed})"
                if scores.steps.reconstructed
                else "not reconstructed"
            )
            manner = (
                f"in {scores.steps.count} steps for {scores.steps.budget}, {between} in between"
            )
        yield f"these heads were scored {manner}, not as these settings would"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def score_each(
    session: Session, sections: Sequence[ScoreSpec], rows: Rows | None, *, plan: Constraints | None
) -> dict[str, Scored]:
    """Score by several methods; a pass that several methods need runs once, and is then read from the journal."""
    scored: dict[str, Scored] = {}
    objective = session.objective(rows.examples) if rows else None
    for section in sections:
        if len(sections) > 1:
            session.progress.notify(f"{section.method}:")
        scored[str(section.method)] = compute_scores(
            session, section, rows, plan=plan, is_first=not scored, objective=objective
        )
    return scored


def compute_scores(
    session: Session,
    score: ScoreSpec,
    rows: Rows | None,
    *,
    plan: Constraints | None,
    keep_parts: bool = True,
    is_first: bool = True,
    objective: Objective | None = None,
) -> Scored:
    """Score every head on ``rows``; methods that need no data ignore them.

    Every finished batch is saved in the run's journal, so the same command resumes an interrupted run. Resuming is reported for
    the first of several methods only: the others may also find batches of this run.
    """
    method = get_method(method_of(score))
    used = rows if method.needs_rows else None
    objective = (objective or session.objective(used.examples)) if used else NO_OBJECTIVE
    batches = objective.sampled_batches if method.differentiates else objective.batches
    journal = _journal(session, batches) if used and keep_parts else None
    done = journal.count() if journal else 0
    session.world.wait()  # before a result of another process is counted as an earlier run's
    if done and is_first:
        session.progress.notify(f"going on with a run that was stopped; batches done: {done}")
    settings = session.settings
    with resumable(journal, session.progress):
        scores = score_with_steps(
            session.model,
            session.anatomy,
            objective,
            Scoring(score, plan, settings.reconstruct, settings.data.seed),
            context=session.context(journal),
        )
    data = dict(used.note) if used else {}
    if method.depends_on_batches:
        data["batch_size"] = settings.data.batch_size
    note = {
        "rows": noted_rows(used.examples if used else (), earlier=session.used_rows),
        "data": data,
        "model": session.note,
        "versions": versions(),
    }
    return Scored(scores.model_copy(update=note), journal)


def _journal(session: Session, batches: Sequence[Batch]) -> Journal:
    """Return the journal of these scores, identified by model, rows and settings.

    The method isn't part of the key: methods share passes by name.
    """
    settings = session.settings
    facts = {
        "seed": settings.data.seed,
        "heads": [str(head) for head in session.anatomy.heads],
        "model": session.note,
        "batches": fingerprint_of_batches(batches),
        "objective": settings.score.objective,
        "task": session.task.name,
        "device": input_device(session.model).type,
        "compile": settings.score.compile,
        "versions": versions(),
    }
    return open_journal(Path(settings.run.run_dir or FOLDER), facts=facts)
