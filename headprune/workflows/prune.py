"""``prune``: score, plan, reconstruct, cut, heal, prove, save; in memory, or from file to file where that is too small."""

from pathlib import Path

from headprune.config import Settings
from headprune.errors import ConfigError
from headprune.gate import Baseline
from headprune.models.manifest import refuse_unusable_output
from headprune.passes import Progress
from headprune.placement import refuse_offloaded, weights_bytes
from headprune.planning.problem import check_constraints
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.tasks.rows import noted_rows
from headprune.workflows.evaluate import refuse_lengths, refuse_other_evaluation
from headprune.workflows.finish import (
    InMemory,
    Written,
    documents_of,
    finish,
    refuse_output,
)
from headprune.workflows.healing import check_training, refuse_training
from headprune.workflows.plan import Show, plan_for
from headprune.workflows.record import note_where, record_of, with_recorded_rows
from headprune.workflows.roles import FoundRoles, find_roles
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.score import scores_by_name
from headprune.workflows.session import Session, open_session
from headprune.workflows.smaller import make_smaller
from headprune.workflows.stepwise import check_settings
from headprune.workflows.stream import is_too_large, plan_streamed, prune_streamed


def plan(
    settings: Settings, *, progress: Progress, show: Show, stream: bool | None = None
) -> PruningPlan:
    """Choose the heads that would be removed, and write nothing; ``stream=None`` lets the model's size decide."""
    if stream is None:
        stream = is_too_large(settings, progress=progress)
    if stream:
        return plan_streamed(settings, progress=progress, show=show)
    settings = with_recorded_rows(settings, progress=progress)
    check_settings(settings)
    session = open_session(settings, progress=progress)
    _ = session.anatomy  # proven before any row is read
    decides = settings.plan.max_drop is not None
    parts = separate_rows(session, Purpose(decides=decides, reports=decides))
    found = find_roles(session, parts.calibrate, shows=True, keep_parts=False)
    return plan_for(session, parts, show=show, keep_parts=False, roles=found.roles)[1]


def prune(
    settings: Settings,
    *,
    progress: Progress,
    show: Show,
    baseline: Baseline | None = None,
    stream: bool | None = None,
) -> Results:
    """Score, plan, cut, prove and save.

    Args:
        settings: The settings; a budget and ``out`` must be there.
        progress: Where progress is reported.
        show: Called with scores and plan before anything is cut.
        baseline: What the results will be compared with; refused now if they can't be.
        stream: Whether the model is cut from file to file, and nothing is measured; None leaves that to its size.

    Raises:
        ConfigError: Settings contradict each other, or no metric would be measured to compare with ``baseline``.
        ProofError: A proof said no; nothing was saved.
    """
    remedy = "leave out `stream`" if stream else "free some memory"
    if stream is None:
        stream = is_too_large(settings, progress=progress)
    if stream:
        _refuse_streaming(settings, baseline, remedy=remedy)
        return prune_streamed(settings, progress=progress, show=show)
    heals = settings.distill.heal is not None
    settings = with_recorded_rows(settings, progress=progress)
    out = Path(settings.run.out or "")
    refuse_unusable_output(out, overwrite=settings.run.overwrite, notify=progress.notify)
    check_settings(settings)
    if heals:
        check_training(settings)
    session = open_session(settings, progress=progress)
    refuse_lengths(session)
    refuse_output(settings.run, source=session.source.directory)
    refuse_offloaded(session.model)
    check_constraints(session.anatomy, settings.plan)
    if heals:
        refuse_training(session, session.anatomy, has_teacher=False)
    used = scores_by_name(session)[1].rows if settings.run.scores is not None else ()
    decides = settings.plan.max_drop is not None
    parts = separate_rows(session, Purpose(decides=decides, trains=heals), used=used)
    if baseline is not None:
        refuse_other_evaluation(baseline, session, parts.report)
    found = find_roles(session, parts.calibrate, shows=True)
    scored, chosen = plan_for(session, parts, show=show, keep_parts=True, roles=found.roles)
    results = _cut_and_save(session, chosen, scored.scores, parts, found, out=out)
    scored.discard_journal()
    found.discard_journal()
    return results


def _refuse_streaming(settings: Settings, baseline: Baseline | None, *, remedy: str) -> None:
    """Refuse what isn't done from file to file."""
    heal = settings.distill.heal
    if heal is not None:
        raise ConfigError(
            "from file to file nothing is trained",
            where=f"`heal={heal}`",
            hint=f"{remedy}, or leave `heal` out and heal on another machine: headprune heal DIR",
        )
    if baseline is not None:
        raise ConfigError(
            "from file to file nothing is measured that could be compared with a baseline",
            where="`baseline`",
            hint=f"{remedy}, or say `baseline=False` and check on another machine: headprune check",
        )


def _cut_and_save(
    session: Session,
    plan: PruningPlan,
    scores: HeadScores,
    parts: RowParts,
    found: FoundRoles,
    *,
    out: Path,
) -> Results:
    """Make the model smaller, save it, and prove each step."""
    settings, source = session.settings, session.source
    smaller = make_smaller(session, plan, parts)
    if smaller.reconstructed or smaller.heal or (found.journal and settings.plan.protect_role):
        rows = noted_rows(parts.calibrate.examples, earlier=scores.rows)  # they mustn't report
        scores = scores.model_copy(update={"rows": rows})
    before = smaller.before[0]

    def results(written: Written, size: int) -> Results:
        return Results(
            **smaller.measured,
            proofs=(*smaller.proofs, *written.proofs),
            weights_bytes=(weights_bytes(source.directory), size),
            removed=tuple(str(head) for head in plan.remove),
            roles=plan.roles,
            loads_with=written.loads_with,
            auto_class=session.task.auto_class,
            calibration={**scores.data, "method": scores.method, "n": scores.n},
            reconstruct=smaller.reconstructed,
            heal=smaller.heal,
        )

    def documents(results: Results) -> dict[str, str]:
        note_where(settings, results=results, model=before.model)
        record = record_of(settings)
        return documents_of(
            results, plan, scores, source=source, settings=record, roles=found.roles
        )

    in_memory = InMemory(
        session.model,
        smaller.anatomy,
        source.root,
        splitter=session.tokenizer,
        inputs=smaller.sample.inputs,
        auto_class=session.task.auto_class,
        parameters=(before.parameters, smaller.parameters_removed),
    )
    session.progress.notify("saving it, and loading it again in a fresh process")
    saved = finish(
        out,
        overwrite=settings.run.overwrite,
        write=in_memory.write,
        results=results,
        documents=documents,
    )
    if smaller.checkpoints is not None:
        smaller.checkpoints.drop()
    return saved
