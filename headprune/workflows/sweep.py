"""``sweep``: the metric against the share of heads kept: what ``prune`` makes at each point, beside what scores alone make."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Constraints, ScoreSpec, Settings
from headprune.config.checks import PRUNE, check_roles, check_score, methods_of, shows_prune
from headprune.errors import PlanError
from headprune.footprint import with_busy
from headprune.models.manifest import output_directory, refuse_unusable_output, write_manifest
from headprune.passes import Progress, attempt
from headprune.placement import input_device, is_offloaded, refuse_offloaded, versions
from headprune.planning.constraints import as_dict, with_keep
from headprune.planning.costs import latency_costs
from headprune.plans import HeadScores
from headprune.report.sweeps import sweep_picture
from headprune.results import Curve, Sweep, SweepPoint
from headprune.runs import FOLDER, ROLES_FILE, file_name, next_run
from headprune.runtime.journal import Journal, open_journal
from headprune.workflows.curves import Pruning, measure_curves
from headprune.workflows.plan import refusal_at
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.roles import find_roles, protecting
from headprune.workflows.rows import RowParts, separate_rows
from headprune.workflows.score import score_each
from headprune.workflows.session import Session, open_session

POINTS = tuple(tenth / 10 for tenth in range(10, 0, -1))
_MASKED = "gradient"
"""The best order where heads are masked and nothing is reconstructed."""
_CONTROLS = ("magnitude", "random")
"""They need no data: what any method must beat."""


def sweep(settings: Settings, *, progress: Progress) -> tuple[Sweep, Path]:
    """Measure, on the rows that report, what ``prune`` makes at every point and what scores alone make; no head is cut.

    Every finished batch and point is saved beside the runs, so the same command resumes an interrupted sweep.

    Args:
        settings: The settings; ``methods`` (by default ``prune``, ``method`` and two that need no data) and ``points`` (by
            default every tenth that the model and the constraints allow) say what is compared.
        progress: Where progress is reported.

    Returns:
        The curves, and the directory that holds them with their picture and each method's scores.

    Raises:
        PlanError: A point that was asked for can't be cut.
    """
    settings = with_recorded_rows(settings, progress=progress)
    settings = settings.replaced(run_dir=None)  # of a file: where `score` writes, and no sweep does
    overwrite = settings.run.overwrite
    out = Path(settings.run.out) if settings.run.out else next_run("sweep")
    refuse_unusable_output(out, overwrite=overwrite, notify=progress.notify)
    check_roles(settings.plan, settings.run)
    _notify_left_aside(settings, progress)
    sections = compared(settings.score)
    for section in sections:
        check_score(section, None)
    if shows_prune(settings.score):
        check_score(settings.score, with_keep(settings.plan, POINTS[-1]))  # as at any other point
    session = open_session(settings, progress=progress)
    parts = separate_rows(session)
    found = find_roles(session, parts.calibrate, shows=False)
    constraints = protecting(session, found.roles)
    keeps = lawful_points(
        session.anatomy, constraints, points=settings.run.points, progress=progress
    )
    scored = score_each(session, sections, parts.calibrate, plan=None)
    scores = {method: one.scores for method, one in scored.items()}
    pruning = Pruning.of(session, parts, constraints) if _can_prune(session) else None
    journal = _journal(session, parts)
    if done := journal.count():
        progress.notify(f"going on with a sweep that was stopped; batches done: {done}")
    curves = measure_curves(
        session,
        scores,
        keeps=keeps,
        constraints=constraints,
        batches=session.batches(parts.report.examples),
        context=session.context(journal),
        pruning=pruning,
    )
    outcome = _sweep(session, curves, parts, constraints)
    out = (
        Path(settings.run.out) if settings.run.out else next_run("sweep")
    )  # it may be taken by now
    _write(outcome, scores, found.roles, out, overwrite)
    for one in (*scored.values(), *([pruning.first] if pruning else [])):
        one.discard_journal()
    found.discard_journal()
    journal.drop()
    return outcome, out


def _notify_left_aside(settings: Settings, progress: Progress) -> None:
    """Report settings that don't act: a file may serve other commands, too."""
    plan, spec = settings.plan, settings.reconstruct
    aside = [name for name in plan.budgets if name != "max_drop"]
    aside += ["scores"] if settings.run.scores is not None else []
    if aside:
        names = "`, `".join(aside)
        progress.notify(f"left aside, for a sweep has its own points and scores: `{names}`")
    if settings.distill.heal is not None:
        progress.notify("left aside, for the models of a sweep aren't trained: `heal`")
    idle = {
        "steps": settings.score.steps not in (None, 1),
        "reconstruct": spec.reconstruct not in (None, "none"),
        "allow_bias": spec.allow_bias,
        "rearrange": plan.rearrange,
    }
    if any(idle.values()) and not shows_prune(settings.score):
        names = "`, `".join(name for name, is_given in idle.items() if is_given)
        progress.notify(
            f"left aside, for heads are scored once, and masked at every point: `{names}`"
        )


def compared(score: ScoreSpec) -> tuple[ScoreSpec, ...]:
    """Return one section per method whose scores alone are compared: the methods named, or one method and two controls.

    Raises:
        ConfigError: There is no such method.
    """
    names = score.methods or (score.method or _MASKED, *_CONTROLS)
    methods = [name for name in names if name != PRUNE]
    return methods_of(score, *methods) if methods else ()


def _can_prune(session: Session) -> bool:
    """Whether there is a curve of what ``prune`` does: by default where all weights are here."""
    score = session.settings.score
    if not shows_prune(score) or not is_offloaded(session.model):
        return shows_prune(score)
    if score.methods:
        refuse_offloaded(session.model)
    session.progress.notify("no curve `prune`: some weights wait in CPU memory or on disk")
    return False


def lawful_points(
    anatomy: Anatomy, constraints: Constraints, *, points: Sequence[float], progress: Progress
) -> tuple[float, ...]:
    """Return the keep ratios that ``prune`` could cut, descending from 1 (the unpruned model, always included).

    Args:
        anatomy: Where the heads are.
        constraints: What every cut keeps to.
        points: The keep ratios that were asked for; if empty, the default grid.
        progress: Where progress is reported.

    Raises:
        PlanError: A point that was asked for can't be cut, or none of the default points can be cut
            (infeasible defaults are skipped).
    """
    keeps = sorted({*(points or POINTS)} - {1.0}, reverse=True)
    lawful: list[float] = [1.0]
    refused: list[PlanError] = []
    for keep in keeps:
        refusal = refusal_at(anatomy, constraints, keep)
        if refusal is None:
            lawful.append(keep)
        elif points:
            raise refusal
        else:
            refused.append(refusal)
    if len(refused) == len(keeps) and refused:
        raise refused[-1]
    for refusal in refused:
        progress.notify(f"left out: {refusal.what}")
    return tuple(lawful)


def _journal(session: Session, parts: RowParts) -> Journal:
    """Return the journal of these evaluations; its entries are named by cut."""
    facts = {
        "sweep": session.task.name,
        "heads": [str(head) for head in session.anatomy.heads],
        "model": session.note,
        "batches": fingerprint_of_batches(session.batches(parts.report.examples)),
        "device": input_device(session.model).type,
        "compile": session.settings.score.compile,
        "versions": versions(),
    }
    return open_journal(FOLDER, facts=facts)


def _with_latency(
    session: Session, curves: Sequence[Curve], constraints: Constraints, batches: Sequence[Batch]
) -> tuple[tuple[Curve, ...], dict[str, Any]]:
    """Return the curves with an estimate of every point's latency, and what was timed; as they are where nothing is."""
    model, anatomy, notify = session.model, session.anatomy, session.progress.notify
    if not session.settings.run.latency or is_offloaded(model):
        return tuple(curves), {}
    notify("timing the model with fewer and fewer heads")
    time = partial(latency_costs, model, anatomy, constraints=constraints, batches=batches)
    measured, _reason = attempt(partial(with_busy, time, model))
    if measured is None:
        notify("latency isn't estimated: memory doesn't hold the forward that is timed")
        return tuple(curves), {}
    costs, doubt = measured
    if doubt:
        notify(f"careful: {doubt}: the latency of the points is a rough estimate")

    def timed(point: SweepPoint) -> SweepPoint:
        return point.model_copy(update={"latency_ms": costs.left(anatomy, point.removed)})

    return tuple(
        curve.model_copy(update={"points": tuple(map(timed, curve.points))}) for curve in curves
    ), {**costs.note, "busy": doubt}


def _sweep(
    session: Session, curves: Sequence[Curve], parts: RowParts, constraints: Constraints
) -> Sweep:
    settings, max_drop = session.settings, session.settings.plan.max_drop
    batches = session.batches(parts.report.examples)
    curves, latency = _with_latency(session, curves, constraints, batches)
    return Sweep(
        metric=session.metric_name,
        higher_is_better=session.metric.higher_is_better,
        n=len(parts.report.examples),
        num_heads=len(session.anatomy.heads),
        max_drop=max_drop and max_drop.of(curves[0].points[0].value),
        curves=curves,
        constraints=as_dict(constraints),
        objective=settings.score.objective,
        normalize=settings.score.normalize,
        limit=settings.data.limit,
        latency=latency,
        seed=settings.data.seed,
        calibration=parts.calibrate.note,
        data=parts.report.note,
        model=session.note,
        versions=versions(),
    )


def _write(
    outcome: Sweep,
    scores: Mapping[str, HeadScores],
    roles: Roles | None,
    out: Path,
    overwrite: bool,
) -> None:
    with output_directory(out, overwrite=overwrite) as staging:
        (staging / "sweep.json").write_text(outcome.to_json(), encoding="utf-8")
        for method, values in scores.items():
            (staging / file_name(method)).write_text(values.to_json(), encoding="utf-8")
        if roles is not None:
            (staging / ROLES_FILE).write_text(roles.to_json(), encoding="utf-8")
        for kind in ("png", "svg"):
            (staging / f"sweep.{kind}").write_bytes(sweep_picture(outcome, kind=kind))
        write_manifest(staging)
