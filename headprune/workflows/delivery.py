"""Measure, cut, prove, save: the second half of ``prune``."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import pruning_record
from headprune.artefact import Latency
from headprune.batch import Batch
from headprune.evaluation import EvalResult, Predictions, doubts_of, metric_with_interval, predict
from headprune.footprint import kv_cache_bytes_per_token
from headprune.inspection import inspect
from headprune.masking import gated
from headprune.models.facts import versions, weights_bytes
from headprune.placement import count_parameters, input_device
from headprune.planning import savings
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.subject import (
    Progress,
    Rows,
    Subject,
    model_note,
)
from headprune.surgery import AddedBiases, Reconstruct, add_zero_biases, cut, remove_biases
from headprune.surgery.fit import has_bias
from headprune.tasks.catalogue import METRICS
from headprune.verify import Proof, masked_equals_pruned, require, run
from headprune.workflows.course import is_tolerant
from headprune.workflows.finish import InMemory, Written, documents_of, finish
from headprune.workflows.reconstruction import reconstruct_if_asked, rows_noted
from headprune.workflows.record import note_where, record_of
from headprune.workflows.timing import times_of

# Rows on which masked == pruned and reload == memory are proven.
PROOF_ROWS = 16
_TWIN_BYTES = 2_000_000_000


def _bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def measure(
    subject: Subject, rows: Rows, *, heads: int | None, progress: Progress, timed: bool = True
) -> tuple[EvalResult, Predictions]:
    """Measure the subject's metric on ``rows`` and, where ``timed``, its latency."""
    recipe, model = subject.recipe, subject.model
    batches = subject.batches(rows.examples)
    found = predict(model, subject.task, batches=batches, track=progress.track)
    measured = metric_with_interval(
        found, subject.statistic(), seed=recipe.seed, notify=progress.notify
    )
    timings = times_of([model], subject, batches=batches, progress=progress)[0] if timed else {}
    absent = (found.classes or 0) - len(set(found.references.tolist()))
    by_class = subject.metric in METRICS and METRICS[subject.metric].by_class
    if by_class and absent > 0 and found.classes != 2:
        progress.notify(
            f"{subject.metric}: {absent} of the model's {found.classes} classes have no row: they count as 0"
        )
    note = rows.note
    if "warnings" not in note:  # no row has chosen anything: nobody has looked at the labels yet
        note = {**note, "warnings": list(doubts_of(found, subject.task, model.config))}
        for doubt in note["warnings"]:
            progress.notify(f"careful: {note['name']}: {doubt}")
    result = EvalResult(
        metric=subject.metric,
        value=measured.value,
        interval=measured.interval,
        n=len(rows.examples),
        higher_is_better=measured.higher_is_better,
        parameters=count_parameters(model),
        heads=heads,
        latency_ms=timings,
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(model, batch=batches[0]),
        limit=recipe.limit,
        seed=measured.seed,
        resamples=measured.resamples,
        data=note,
        model=model_note(subject),
        versions=versions(),
    )
    return result, found


@dataclass(frozen=True, eq=False)
class _Made:
    """The smaller model in memory, and what is known of it."""

    anatomy: Anatomy
    sample: Batch
    same: Proof
    removed: int
    reconstructed: Reconstruct | None
    before: EvalResult
    after: EvalResult
    difference: float
    interval: tuple[float, float]


def cut_and_save(
    subject: Subject,
    anatomy: Anatomy,
    plan: PruningPlan,
    scores: HeadScores,
    choosing: Rows,
    rows: Rows,
    *,
    out: Path,
    progress: Progress,
) -> Results:
    """Measure, reconstruct and cut in place, measure again, save, and prove each step.

    Args:
        subject: The model, its heads still there.
        anatomy: Its anatomy.
        plan: Which heads go.
        scores: What the plan was made from.
        choosing: The rows that chose, which may reconstruct, too.
        rows: The rows that report.
        out: Where the model goes.
        progress: How to talk meanwhile.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    made = _cut(subject, anatomy, plan, choosing, rows, progress=progress)
    if made.reconstructed is not None:
        scores = rows_noted(scores, choosing)
    recipe, source = subject.recipe, subject.source

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(made.before.heads or 0, made.after.heads or 0),
            parameters=(made.before.parameters, made.after.parameters),
            before=made.before,
            after=made.after,
            difference=made.difference,
            difference_interval=made.interval,
            proofs=(made.same, *written.proofs),
            weights_bytes=(weights_bytes(source.directory), size),
            removed=tuple(str(head) for head in plan.remove),
            loads_with=written.loads_with,
            auto_class=subject.task.auto_class,
            calibration={**scores.data, "method": scores.method, "n": scores.n},
            reconstruct=made.reconstructed,
        )

    def documents(results: Results) -> dict[str, str]:
        note_where(recipe, results=results, model=made.before.model)
        return documents_of(results, plan, scores, source=source, settings=record_of(recipe))

    smaller = InMemory(
        subject.model,
        made.anatomy,
        source.root,
        splitter=subject.tokenizer,
        inputs=made.sample.inputs,
        auto_class=subject.task.auto_class,
        parameters=(made.before.parameters, made.removed),
    )
    progress.notify("saving it, and loading it again in a fresh process")
    return finish(
        out, overwrite=recipe.overwrite, write=smaller.write, results=results, documents=documents
    )


def _cut(
    subject: Subject,
    anatomy: Anatomy,
    plan: PruningPlan,
    choosing: Rows,
    rows: Rows,
    *,
    progress: Progress,
) -> _Made:
    model, recipe = subject.model, subject.recipe
    batches = subject.batches(rows.examples)
    # Before and after are timed in turns where both fit in memory with ease; a GPU's clock is as good one after the other.
    takes_turns = (
        recipe.latency and input_device(model).type == "cpu" and _bytes(model) <= _TWIN_BYTES
    )
    twin = copy.deepcopy(model) if takes_turns else None
    timed = twin is None
    before, old = measure(subject, rows, heads=len(anatomy.heads), progress=progress, timed=timed)
    given = _biases(subject, anatomy, plan, progress=progress)
    anatomy = inspect(model) if given else anatomy
    reconstructed = reconstruct_if_asked(subject, anatomy, plan, choosing, progress=progress)
    if given and (
        reconstructed is None or reconstructed.kept is None or reconstructed.kept.method == "scale"
    ):
        remove_biases(model, given)
        given, anatomy = None, inspect(model)
    sample = batches[-1].take(PROOF_ROWS)
    masked = _masked_output(model, anatomy, plan, sample)
    removed = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded).parameters
    anatomy = cut(model, anatomy, remove=plan.remove, pad=plan.is_padded)
    model.config.headprune = {**pruning_record(model.config), "source": _origin(before)}
    same = masked_equals_pruned(masked, run(model, sample.inputs), rows=sample.num_rows)
    require([same])
    after, new = measure(subject, rows, heads=len(anatomy.heads), progress=progress, timed=timed)
    if twin is not None:
        slow, fast = times_of([twin, model], subject, batches=batches, progress=progress)
        before, after = _with_latency(before, slow), _with_latency(after, fast)
    difference = metric_with_interval(new, subject.statistic(), seed=recipe.seed, other=old)
    added = given.count if given else 0
    return _Made(
        anatomy,
        sample,
        same,
        removed - added,
        reconstructed,
        before,
        after,
        difference.value,
        difference.interval,
    )


def _biases(
    subject: Subject, anatomy: Anatomy, plan: PruningPlan, *, progress: Progress
) -> AddedBiases | None:
    """Create biases for reconstruction to move, where the recipe allows it and the family knows them."""
    recipe = subject.recipe
    if (
        not recipe.allow_bias
        or recipe.reconstruct == "none"
        or is_tolerant(recipe)
        or not plan.remove
    ):
        return None
    if recipe.target_parameters is not None:
        progress.notify("no bias is created: it would be parameters beyond the target")
        return None
    given = add_zero_biases(subject.model, anatomy)
    if given is None and not has_bias(subject.model, anatomy):
        kind = type(subject.model).__name__
        progress.notify(f"no bias is created: {kind} knows none in its output projections")
    return given


def _origin(before: EvalResult) -> dict[str, Any]:
    """Return what the model was before it was ever pruned."""
    names = ("name", "revision", "own_code", "fingerprint")
    model = before.model
    return model.get("source") or {name: model[name] for name in names if name in model}


def _with_latency(result: EvalResult, latency: dict[str, Latency]) -> EvalResult:
    return result.model_copy(update={"latency_ms": latency})


def _masked_output(
    model: PreTrainedModel, anatomy: Anatomy, plan: PruningPlan, sample: Batch
) -> Tensor:
    with gated(model, anatomy, gates=anatomy.mask(plan.remove)):
        return run(model, sample.inputs)
