"""``sweep``: the metric against the share of heads kept, method by method: scored once, cut at many points by masking."""

from collections.abc import Mapping, Sequence
from math import log, sqrt
from pathlib import Path

import torch

from headprune.analysis.roles import Roles
from headprune.anatomy import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import BUDGETS, Constraints, ScoreSpec, Settings
from headprune.config.checks import check_roles, check_score, methods_of
from headprune.errors import PlanError
from headprune.evaluation import Predictions, metric_with_interval, predict_masked
from headprune.heads import HeadId
from headprune.models.manifest import output_directory, refuse_unusable_output, write_manifest
from headprune.passes import Progress, RunContext
from headprune.placement import input_device, versions
from headprune.planning import knee, last_within, make_plan, with_role_heads
from headprune.planning.constraints import as_dict, selected_sites, with_keep
from headprune.plans import HeadScores
from headprune.report.charts import sweep_picture
from headprune.results import Curve, Sweep, SweepPoint
from headprune.runs import FOLDER, ROLES_FILE, file_name, next_run
from headprune.runtime.journal import Journal, open_journal
from headprune.tasks.catalogue import is_logarithmic
from headprune.workflows.plan import refusal_at
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.roles import find_roles
from headprune.workflows.rows import RowParts, separate_rows
from headprune.workflows.score import score_each
from headprune.workflows.session import Session, open_session, resumable

POINTS = tuple(tenth / 10 for tenth in range(10, 0, -1))
_MASKED = "gradient"
"""The best order where heads are masked and nothing is reconstructed."""
_CONTROLS = ("magnitude", "random")
"""They need no data: what any method must beat."""

Cut = frozenset[HeadId]


def sweep(settings: Settings, *, progress: Progress) -> tuple[Sweep, Path]:
    """Score by several methods on the calibration rows, and measure each one's cuts on the rows that report, by masking.

    Every finished batch is saved beside the runs, so the same command resumes an interrupted sweep.

    Args:
        settings: The settings; ``methods`` (by default ``method`` and two that need no data) and ``points`` (by default every
            tenth that the model and the constraints allow) say what is compared.
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
    constraints = _for_any_cut(settings, progress=progress)
    sections = compared(settings.score)
    check_roles(constraints, settings.run)
    for section in sections:
        check_score(section, constraints)
    session = open_session(settings, progress=progress)
    anatomy, points = session.anatomy, settings.run.points
    keeps = lawful_points(anatomy, constraints, points=points, progress=progress)
    parts = separate_rows(session)
    found = find_roles(session, parts.calibrate, shows=False)
    if found.roles is not None:
        constraints = with_role_heads(constraints, found.roles)
        keeps = lawful_points(anatomy, constraints, points=points, progress=progress)
    scored = score_each(session, sections, parts.calibrate, plan=constraints)
    scores = {method: one.scores for method, one in scored.items()}
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
    )
    outcome = _sweep(session, curves, parts, constraints)
    out = (
        Path(settings.run.out) if settings.run.out else next_run("sweep")
    )  # it may be taken by now
    _write(outcome, scores, found.roles, out, overwrite)
    for one in scored.values():
        one.discard_journal()
    found.discard_journal()
    journal.drop()
    return outcome, out


def _for_any_cut(settings: Settings, *, progress: Progress) -> Constraints:
    """Return the plan's section without settings that apply to one cut only, and report which are ignored."""
    plan, spec = settings.plan, settings.reconstruct
    single = {name: None for name in BUDGETS if name != "max_drop"} | {"rearrange": False}
    aside = [name for name, value in single.items() if getattr(plan, name) not in (None, value)]
    if settings.score.steps not in (None, 1):
        aside.append("steps")
    aside += ["reconstruct"] if spec.reconstruct not in (None, "none") else []
    aside += ["allow_bias"] if spec.allow_bias else []
    if aside:
        progress.notify(
            f"left aside, for heads are scored once, and masked at every point: `{'`, `'.join(aside)}`"
        )
    return plan.model_copy(update={**single, "max_drop": None})


def compared(score: ScoreSpec) -> tuple[ScoreSpec, ...]:
    """Return one section per compared method: the methods named, or one method and two controls.

    Raises:
        ConfigError: There is no such method.
    """
    once = score.model_copy(update={"steps": 1})
    return methods_of(once, score.method or _MASKED, *_CONTROLS)


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


def measure_curves(
    session: Session,
    scores: Mapping[str, HeadScores],
    *,
    keeps: Sequence[float],
    constraints: Constraints,
    batches: Sequence[Batch],
    context: RunContext,
) -> tuple[Curve, ...]:
    """Plan every cut, run each distinct cut once, and compare it with the unpruned model.

    Args:
        session: The model, with its task and settings.
        scores: The scores of each method.
        keeps: The keep ratios, from 1 down.
        constraints: What every cut keeps to.
        batches: The rows that report.
        context: How the work runs, and where results are kept.
    """
    anatomy, notify = session.anatomy, session.progress.notify
    removals = {
        method: [_removed(one, anatomy, constraints, keep) for keep in keeps]
        for method, one in scores.items()
    }
    cuts = list(
        dict.fromkeys([Cut(), *(Cut(cut) for removed in removals.values() for cut in removed)])
    )
    notify(f"{len(scores)} methods, {len(keeps)} points: {len(cuts)} different cuts to evaluate")
    with resumable(context.journal, session.progress):
        predictions = predict_masked(
            session.model,
            anatomy,
            session.task,
            batches=batches,
            masks=torch.stack([anatomy.mask(cut) for cut in cuts]),
            context=context,
        )
    notify(f"bootstrap: {len(cuts)} cuts, samples of {len(predictions[0].references):,} rows")
    whole = predictions[0]
    points = {
        cut: _measured(session, one, whole) for cut, one in zip(cuts, predictions, strict=True)
    }
    may_go = len(selected_sites(anatomy, constraints.sites).heads)

    def point(keep: float, cut: tuple[HeadId, ...]) -> SweepPoint:
        kept = len(anatomy.heads) - len(cut)
        place = {"keep": keep, "share": 1 - len(cut) / may_go, "heads": kept, "removed": cut}
        return points[Cut(cut)].model_copy(update=place)

    return tuple(
        _curve(session, scores[method], list(map(point, keeps, removed)))
        for method, removed in removals.items()
    )


def _removed(
    scores: HeadScores, anatomy: Anatomy, constraints: Constraints, keep: float
) -> tuple[HeadId, ...]:
    """Return the heads that are removed; none at keep 1, even if a cut would have to remove some to keep multiples."""
    if keep == 1:
        return ()
    return make_plan(scores, anatomy, constraints=with_keep(constraints, keep)).remove


def _measured(session: Session, predictions: Predictions, whole: Predictions) -> SweepPoint:
    """Return the measurements of a cut; the curve adds its keep ratio."""
    seed = session.settings.data.seed
    value = metric_with_interval(predictions, session.metric, seed=seed)
    difference = metric_with_interval(predictions, session.metric, seed=seed, other=whole)
    losses = predictions.losses
    assert losses is not None
    return SweepPoint(
        keep=1.0,
        share=1.0,
        heads=0,
        removed=(),
        value=value.value,
        interval=value.interval,
        difference=difference.value,
        difference_interval=difference.interval,
        loss=float(losses.mean()),
        loss_standard_error=float(losses.std(ddof=1)) / sqrt(len(losses)),
    )


def _curve(session: Session, scores: HeadScores, points: Sequence[SweepPoint]) -> Curve:
    """Return a method's points, with the knee and the deepest cut within the allowed drop."""
    higher_is_better, max_drop = session.metric.higher_is_better, session.settings.plan.max_drop
    sign = 1 if higher_is_better else -1
    is_log = is_logarithmic(session.metric_name)
    worth = [sign * (log(point.value) if is_log else point.value) for point in points]
    bend = knee([point.share for point in points], worth)
    last = None
    if max_drop is not None:
        ends = [point.difference_interval for point in points]
        drops = [-low if higher_is_better else high for low, high in ends]
        last = last_within(drops, max_drop.of(points[0].value))
    return Curve(
        method=scores.method,
        scored_on=scores.n,
        points=tuple(points),
        knee=None if bend is None else points[bend].keep,
        within_drop=None if last is None else points[last].keep,
    )


def _sweep(
    session: Session, curves: Sequence[Curve], parts: RowParts, constraints: Constraints
) -> Sweep:
    settings, max_drop = session.settings, session.settings.plan.max_drop
    return Sweep(
        metric=session.metric_name,
        higher_is_better=session.metric.higher_is_better,
        n=len(parts.report.examples),
        num_heads=len(session.anatomy.heads),
        max_drop=max_drop and max_drop.of(curves[0].points[0].value),
        curves=tuple(curves),
        constraints=as_dict(constraints),
        objective=settings.score.objective,
        normalize=settings.score.normalize,
        limit=settings.data.limit,
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
