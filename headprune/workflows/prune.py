"""``prune``: score, plan, reconstruct, cut, heal, prove, save; in memory, or from file to file where that is too small."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import pruning_record
from headprune.artefact import EvalResult, Heal, Proof, Reconstruct
from headprune.batch import Batch
from headprune.config import Settings
from headprune.distillation.settings import Checkpoints
from headprune.errors import ConfigError
from headprune.evaluation import MetricValue, Predictions, metric_with_interval
from headprune.gate import Baseline
from headprune.masking import gated
from headprune.models.manifest import refuse_unusable_output
from headprune.passes import Progress
from headprune.placement import input_device, refuse_offloaded, weights_bytes
from headprune.planning import check_constraints, savings
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.surgery import cut
from headprune.tasks.rows import noted_rows
from headprune.verify import masked_equals_pruned, require, run
from headprune.workflows.evaluate import measure, refuse_lengths, refuse_other_evaluation, times_of
from headprune.workflows.finish import (
    PROOF_ROWS,
    InMemory,
    Written,
    documents_of,
    finish,
    refuse_output,
)
from headprune.workflows.heal_cut import heal_cut
from headprune.workflows.healing import check_training, refuse_training
from headprune.workflows.plan import Show, plan_for
from headprune.workflows.reconstruct import make_ready
from headprune.workflows.record import note_where, record_of, with_recorded_rows
from headprune.workflows.roles import FoundRoles, find_roles
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.score import scores_by_name
from headprune.workflows.session import Session, open_session
from headprune.workflows.stepwise import check_settings
from headprune.workflows.stream import is_too_large, plan_streamed, prune_streamed
from headprune.workflows.teacher import Teacher, copy_of

_TWIN_BYTES = 2_000_000_000


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
    _ = session.anatomy
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


class _Measured(NamedTuple):
    """What was measured on the rows that report, and how much more the metric is than the whole model's."""

    result: EvalResult
    difference: MetricValue


@dataclass(frozen=True, eq=False)
class _Smaller:
    """The smaller model in memory, and the facts about it.

    Args:
        anatomy: Its anatomy.
        sample: The rows that proofs are made on.
        proofs: What was proven.
        parameters_removed: How many parameters the cut took.
        reconstructed: What reconstruction did.
        before: The whole model, and its predictions.
        cut: The smaller model as it was cut.
        heal: What healing did.
        healed: The model after that; None where its weights are still those from before.
        checkpoints: Of the healing, to be dropped once the model is saved.
    """

    anatomy: Anatomy
    sample: Batch
    proofs: tuple[Proof, ...]
    parameters_removed: int
    reconstructed: Reconstruct | None
    before: tuple[EvalResult, Predictions]
    cut: _Measured
    heal: Heal | None = None
    healed: _Measured | None = None
    checkpoints: Checkpoints | None = None


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
    smaller = _make_smaller(session, plan, parts)
    if smaller.reconstructed or smaller.heal or (found.journal and settings.plan.protect_role):
        rows = noted_rows(parts.calibrate.examples, earlier=scores.rows)  # they mustn't report
        scores = scores.model_copy(update={"rows": rows})
    before, (after, difference) = smaller.before[0], smaller.healed or smaller.cut
    cut_model, cut_change = smaller.cut if smaller.healed else (None, None)

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(before.heads or 0, after.heads or 0),
            parameters=(before.parameters, after.parameters),
            before=before,
            cut=cut_model,
            cut_difference=cut_change and cut_change.value,
            cut_difference_interval=cut_change and cut_change.interval,
            after=after,
            difference=difference.value,
            difference_interval=difference.interval,
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


def _make_smaller(session: Session, plan: PruningPlan, parts: RowParts) -> _Smaller:
    """Measure, reconstruct and cut in place, and measure again; then heal, where that is asked for."""
    heals = session.settings.distill.heal is not None and bool(plan.remove)
    teacher = copy_of(session, session.anatomy) if heals else None
    smaller = _cut(session, plan, parts, teacher)
    return smaller if teacher is None else _heal(session, smaller, teacher, parts)


def _cut(session: Session, plan: PruningPlan, parts: RowParts, teacher: Teacher | None) -> _Smaller:
    model, anatomy, rows = session.model, session.anatomy, parts.report
    batches = session.batches(rows.examples)
    # Before and after are timed in turns where both fit in memory with ease; a GPU's clock is as good one after the other.
    takes_turns = (
        session.settings.run.latency
        and input_device(model).type == "cpu"
        and sum(parameter.nbytes for parameter in model.parameters()) <= _TWIN_BYTES
    )
    twin = (teacher.model if teacher else copy.deepcopy(model)) if takes_turns else None
    timed = twin is None
    before, old = measure(session, rows, heads=len(anatomy.heads), timed=timed, note=session.note)
    ready = make_ready(session, plan, parts)
    anatomy = ready.anatomy
    sample = batches[-1].take(PROOF_ROWS)
    with gated(model, anatomy, gates=anatomy.mask(plan.remove)):
        masked = run(model, sample.inputs)
    removed = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded).parameters
    anatomy = cut(model, anatomy, remove=plan.remove, pad=plan.is_padded)
    model.config.headprune = {**pruning_record(model.config), "source": _origin(before)}
    same = masked_equals_pruned(masked, run(model, sample.inputs), rows=sample.num_rows)
    require([same])
    after, difference = _measured(session, parts, anatomy, old, timed=timed)
    if twin is not None:
        slow, fast = times_of([twin, model], session, batches=batches)
        before = before.model_copy(update={"latency_ms": slow})
        after = after.model_copy(update={"latency_ms": fast})
    removed -= ready.biases.count if ready.biases else 0
    cut_model = _Measured(after, difference)
    return _Smaller(anatomy, sample, (same,), removed, ready.outcome, (before, old), cut_model)


def _heal(session: Session, smaller: _Smaller, teacher: Teacher, parts: RowParts) -> _Smaller:
    """Heal in place, and measure once more where that was kept; the healed model takes as long as the cut one."""
    anatomy, (cut_model, _difference) = smaller.anatomy, smaller.cut
    healed, proofs, checkpoints = heal_cut(session, teacher, anatomy, parts, smaller.sample)
    require(proofs)
    measured = None
    if healed.kept:
        measured = _measured(session, parts, anatomy, smaller.before[1], timed=False)
        timed = measured.result.model_copy(update={"latency_ms": cut_model.latency_ms})
        measured = measured._replace(result=timed)
    return replace(
        smaller,
        proofs=(*smaller.proofs, *proofs),
        heal=healed,
        healed=measured,
        checkpoints=checkpoints,
    )


def _measured(
    session: Session, parts: RowParts, anatomy: Anatomy, old: Predictions, *, timed: bool
) -> _Measured:
    """Measure the model as it is now, and compare it with predictions of the whole one."""
    result, new = measure(session, parts.report, heads=len(anatomy.heads), timed=timed)
    seed = session.settings.data.seed
    return _Measured(result, metric_with_interval(new, session.metric, seed=seed, other=old))


def _origin(before: EvalResult) -> dict[str, Any]:
    """Return what the model was before it was ever pruned."""
    names = ("name", "revision", "own_code", "fingerprint")
    model = before.model
    return model.get("source") or {name: model[name] for name in names if name in model}
