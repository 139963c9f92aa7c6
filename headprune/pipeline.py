"""The only place where stages meet: settings in, values out; each function is one command."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import pruning_record
from headprune.atomic import refuse_unusable_target, staged_directory
from headprune.batch import Batch
from headprune.checkpoint import Route, load_model, seal, write_model
from headprune.config import Recipe
from headprune.errors import HeadpruneError, PlanError
from headprune.evaluation import EvalResult, Predictions, first_examples, judge, latency_ms, predict
from headprune.heads import Artefact, HeadMask, HeadScores, PruningPlan
from headprune.inspection import inspect
from headprune.masking import gated
from headprune.models import find, fingerprint, versions, weights_bytes
from headprune.report.card import model_card
from headprune.results import Results
from headprune.runs import latest_scores, named_scores
from headprune.scoring import score as score_heads
from headprune.selection import Constraints, check_constraints, make_plan, parameters_removed
from headprune.subject import (
    Rows,
    Subject,
    Voice,
    calibration_rows,
    evaluation_rows,
    model_name,
    model_note,
    open_subject,
    separate_rows,
)
from headprune.surgery import cut
from headprune.verify import (
    Proof,
    insist,
    main_output,
    masked_equals_pruned,
    parameters_add_up,
    reload_is_identical,
)

# Rows on which masked == pruned and reload == memory are proven.
_PROOF_ROWS = 16


def score(recipe: Recipe, *, voice: Voice) -> HeadScores:
    """Score every head on the calibration rows."""
    subject = open_subject(recipe, voice=voice)
    anatomy = inspect_for_pruning(subject, voice=voice)
    return _score(subject, anatomy, calibration_rows(subject, voice=voice), voice=voice)


def inspect_for_pruning(subject: Subject, *, voice: Voice) -> Anatomy:
    """Return the proven anatomy, and say what is left out of it."""
    anatomy = inspect(subject.model)
    for path, reason in anatomy.refused.items():
        voice.say(f"left whole: {path}: {reason}")
    if not anatomy.heads:
        raise PlanError(
            "the model has no head that can be pruned", where=subject.source.name, hint="see above"
        )
    return anatomy


def _score(subject: Subject, anatomy: Anatomy, rows: Rows, *, voice: Voice) -> HeadScores:
    recipe = subject.recipe
    method = recipe.method or "gradient"
    found = score_heads(
        subject.model,
        anatomy,
        batches=subject.batches(rows.examples),
        loss=subject.task.loss,
        method=method,
        normalize=recipe.normalize,
        seed=recipe.seed,
        track=voice.track,
    )
    note = {"data": rows.note, "model": model_note(subject), "versions": versions()}
    return found.model_copy(update=note)


def evaluate(recipe: Recipe, *, voice: Voice) -> EvalResult:
    """Evaluate a model, pruned or not."""
    subject = open_subject(recipe, voice=voice)
    rows = evaluation_rows(subject, voice=voice)
    return _evaluate(subject, rows, heads=_count_heads(subject.model), voice=voice)[0]


def _count_heads(model: PreTrainedModel) -> int:
    """Return the number of heads; a model whose heads can't be found is evaluated all the same."""
    try:
        return len(inspect(model).heads)
    except HeadpruneError:
        return 0


def _evaluate(
    subject: Subject, rows: Rows, *, heads: int, voice: Voice
) -> tuple[EvalResult, Predictions]:
    recipe, model = subject.recipe, subject.model
    batches = subject.batches(rows.examples)
    found = predict(model, subject.task, batches=batches, track=voice.track)
    metric = recipe.metric or subject.task.metric
    value, interval, higher_is_better = judge(
        found, metric, seed=recipe.seed, higher_is_better=recipe.higher_is_better
    )
    result = EvalResult(
        metric=metric,
        value=value,
        interval=interval,
        n=len(rows.examples),
        higher_is_better=higher_is_better,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        heads=heads,
        latency_ms=latency_ms(model, batches=batches),
        limit=recipe.limit,
        seed=recipe.seed,
        data=rows.note,
        model=model_note(subject),
        versions=versions(),
    )
    return result, found


def look(recipe: Recipe, *, voice: Voice) -> Anatomy:
    """Return the proven anatomy of the model; no data is needed."""
    source = find(model_name(recipe), revision=recipe.revision)
    model = load_model(source, auto_class=None, device=recipe.device, dtype=recipe.dtype)
    voice.say(f"model {recipe.model} ({model.config.model_type})")
    return inspect(model)


def plan(
    recipe: Recipe, *, voice: Voice, show: Callable[[HeadScores, PruningPlan], None]
) -> PruningPlan:
    """Choose the heads that would go, and write nothing."""
    subject = open_subject(recipe, voice=voice)
    anatomy = inspect_for_pruning(subject, voice=voice)
    return _plan(subject, anatomy, calibration_rows(subject, voice=voice), voice=voice, show=show)[
        1
    ]


def prune(
    recipe: Recipe, *, voice: Voice, show: Callable[[HeadScores, PruningPlan], None]
) -> Results:
    """Score, plan, cut, prove and save.

    Args:
        recipe: The settings; ``keep`` and ``out`` must be there.
        voice: How to talk meanwhile.
        show: Called with scores and plan before anything is cut.

    Raises:
        ProofError: A proof said no; nothing was saved.
    """
    out = Path(recipe.out or "")
    refuse_unusable_target(out, overwrite=recipe.overwrite)
    subject = open_subject(recipe, voice=voice)
    size = weights_bytes(subject.source.directory)
    refuse_unusable_target(out, overwrite=recipe.overwrite, needed_bytes=size)
    anatomy = inspect_for_pruning(subject, voice=voice)
    check_constraints(anatomy, _constraints(recipe))
    choosing, reporting = separate_rows(subject, voice=voice)
    scores, chosen = _plan(subject, anatomy, choosing, voice=voice, show=show)
    return _cut_and_save(subject, anatomy, chosen, scores, reporting, out=out, voice=voice)


def _constraints(recipe: Recipe) -> Constraints:
    return Constraints(
        keep=1.0 if recipe.keep is None else recipe.keep,
        min_heads=recipe.min_heads,
        protect=recipe.protect,
        uniform=recipe.uniform,
        gqa=recipe.gqa,
    )


def _plan(
    subject: Subject,
    anatomy: Anatomy,
    rows: Rows,
    *,
    voice: Voice,
    show: Callable[[HeadScores, PruningPlan], None],
) -> tuple[HeadScores, PruningPlan]:
    constraints = _constraints(subject.recipe)
    check_constraints(anatomy, constraints)
    scores = _find_scores(subject, anatomy, rows, voice=voice)
    chosen = make_plan(scores, anatomy, constraints=constraints)
    wanted, left = chosen.budget["heads_wanted"], chosen.budget["heads_after"]
    if wanted != left:
        voice.say(f"{left} heads stay instead of {wanted}: heads go in whole units here")
    show(scores, chosen)
    return scores, chosen


def _find_scores(subject: Subject, anatomy: Anatomy, rows: Rows, *, voice: Voice) -> HeadScores:
    """Return the scores that were named, else the latest run's if they fit, else new ones."""
    recipe = subject.recipe
    mine = fingerprint(subject.model)
    if recipe.scores is not None:
        scores = named_scores(Path(recipe.scores), fingerprint=mine)
        if scores.n and scores.data.get("fingerprint") != rows.note["fingerprint"]:
            voice.say("the scores were computed on other rows than these settings would choose")
        return scores
    latest = latest_scores()
    if latest is not None:
        scores, path = latest
        fits = (
            scores.model.get("fingerprint") == mine
            and scores.data.get("fingerprint") == rows.note["fingerprint"]
            and scores.method == (recipe.method or scores.method)
            and scores.normalize == recipe.normalize
        )
        if fits:
            voice.say(f"scores of the latest run: {path} ({scores.method}, n = {scores.n:,})")
            return scores
        voice.say(
            f"the latest run ({path}) has scores of another model, data or method: scoring anew"
        )
    return _score(subject, anatomy, rows, voice=voice)


def _cut_and_save(
    subject: Subject,
    anatomy: Anatomy,
    plan: PruningPlan,
    scores: HeadScores,
    rows: Rows,
    *,
    out: Path,
    voice: Voice,
) -> Results:
    model = subject.model
    before, old = _evaluate(subject, rows, heads=len(anatomy.heads), voice=voice)
    sample = first_examples(subject.batches(rows.examples)[-1], _PROOF_ROWS)
    mask = HeadMask.without(plan.remove, anatomy.heads)
    gates = torch.tensor(mask.values, device=next(model.parameters()).device)
    with gated(model, anatomy, gates=gates):
        masked = main_output(model, sample.inputs)
    expected = parameters_removed(model, anatomy, remove=plan.remove)
    origin = before.model.get("source") or {
        name: before.model[name] for name in ("name", "revision", "fingerprint")
    }

    anatomy = cut(model, anatomy, remove=plan.remove)
    model.config.headprune = {**pruning_record(model.config), "source": origin}
    same = masked_equals_pruned(masked, main_output(model, sample.inputs), rows=sample.num_rows)
    insist([same])
    after, new = _evaluate(subject, rows, heads=len(anatomy.heads), voice=voice)
    difference, interval, _direction = judge(
        new,
        before.metric,
        seed=subject.recipe.seed,
        higher_is_better=subject.recipe.higher_is_better,
        other=old,
    )
    with staged_directory(out, overwrite=subject.recipe.overwrite) as staging:
        route = write_model(
            model,
            staging,
            anatomy=anatomy,
            tokenizer=subject.tokenizer,
            source=subject.source.directory,
        )
        voice.say("loading it again in a fresh process")
        saved = _prove_saved(
            subject, staging, sample, route=route, before=before.parameters, removed=expected
        )
        results = Results(
            before=before,
            after=after,
            difference=difference,
            difference_interval=interval,
            proofs=(same, *saved),
            weights_bytes=(weights_bytes(subject.source.directory), weights_bytes(staging)),
            removed=tuple(str(head) for head in plan.remove),
            loads_with=route,
            auto_class=subject.task.auto_class,
            calibration={**scores.data, "method": scores.method, "n": scores.n},
        )
        _write_documents(subject, staging, scores=scores, plan=plan, results=results)
        seal(staging)
    return results


def _prove_saved(
    subject: Subject, staging: Path, sample: Batch, *, route: Route, before: int, removed: int
) -> tuple[Proof, Proof]:
    proofs = (
        reload_is_identical(
            subject.model,
            staging,
            inputs=sample.inputs,
            auto_class=subject.task.auto_class,
            route=route,
        ),
        parameters_add_up(before=before, removed=removed, directory=staging, model=subject.model),
    )
    insist(proofs)
    return proofs


def _write_documents(
    subject: Subject, staging: Path, *, scores: HeadScores, plan: PruningPlan, results: Results
) -> None:
    documents: dict[str, Artefact] = {"scores": scores, "plan": plan, "results": results}
    for name, document in documents.items():
        (staging / f"{name}.json").write_text(document.to_json(), encoding="utf-8")
    (staging / "headprune.yaml").write_text(subject.recipe.to_yaml(), encoding="utf-8")
    card = model_card(results, plan, source=subject.source)
    (staging / "README.md").write_text(card, encoding="utf-8")
