"""A model made smaller in memory: measured, reconstructed, cut, healed, and measured after each."""

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from headprune.anatomy.clone import pruning_record
from headprune.anatomy.sites import Anatomy
from headprune.artefact import EvalResult, Heal, Proof, Reconstruct
from headprune.batch import Batch
from headprune.distillation.settings import Checkpoints
from headprune.evaluation import MetricValue, Predictions, metric_with_interval
from headprune.masking import gated
from headprune.placement import input_device
from headprune.planning.costs import savings
from headprune.plans import PruningPlan
from headprune.surgery.cut import cut
from headprune.verify import masked_equals_pruned, require, run
from headprune.workflows.evaluate import measure, times_of
from headprune.workflows.finish import PROOF_ROWS
from headprune.workflows.heal_cut import heal_cut
from headprune.workflows.reconstruct import make_ready
from headprune.workflows.rows import RowParts
from headprune.workflows.session import Session
from headprune.workflows.teacher import Teacher, copy_of

_TWIN_BYTES = 2_000_000_000


class Measured(NamedTuple):
    """What was measured on the rows that report, and how much more the metric is than the whole model's."""

    result: EvalResult
    difference: MetricValue


@dataclass(frozen=True, eq=False)
class Smaller:
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
    cut: Measured
    heal: Heal | None = None
    healed: Measured | None = None
    checkpoints: Checkpoints | None = None

    @property
    def measured(self) -> dict[str, Any]:
        """What was measured, by the fields of results: sizes, the metric of each stage, differences to the whole model."""
        before, (after, difference) = self.before[0], self.healed or self.cut
        values: dict[str, Any] = {
            "heads": (before.heads or 0, after.heads or 0),
            "parameters": (before.parameters, after.parameters),
            "before": before,
            "after": after,
            "difference": difference.value,
            "difference_interval": difference.interval,
        }
        if self.healed:
            cut_model, change = self.cut
            values |= {"cut": cut_model, "cut_difference": change.value}
            values |= {"cut_difference_interval": change.interval}
        return values


def make_smaller(session: Session, plan: PruningPlan, parts: RowParts) -> Smaller:
    """Measure, reconstruct and cut in place, and measure again; then heal, where that is asked for."""
    heals = session.settings.distill.heal is not None and bool(plan.remove)
    teacher = copy_of(session, session.anatomy) if heals else None
    smaller = _cut(session, plan, parts, teacher)
    return smaller if teacher is None else _heal(session, smaller, teacher, parts)


def _cut(session: Session, plan: PruningPlan, parts: RowParts, teacher: Teacher | None) -> Smaller:
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
    cut_model = Measured(after, difference)
    return Smaller(anatomy, sample, (same,), removed, ready.outcome, (before, old), cut_model)


def _heal(session: Session, smaller: Smaller, teacher: Teacher, parts: RowParts) -> Smaller:
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
) -> Measured:
    """Measure the model as it is now, and compare it with predictions of the whole one."""
    result, new = measure(session, parts.report, heads=len(anatomy.heads), timed=timed)
    seed = session.settings.data.seed
    return Measured(result, metric_with_interval(new, session.metric, seed=seed, other=old))


def _origin(before: EvalResult) -> dict[str, Any]:
    """Return what the model was before it was ever pruned."""
    names = ("name", "revision", "own_code", "fingerprint")
    model = before.model
    return model.get("source") or {name: model[name] for name in names if name in model}
