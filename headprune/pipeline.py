"""The only place where stages meet: settings in, values out; each function is one command."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import pruning_record
from headprune.atomic import refuse_unusable_target, staged_directory
from headprune.checkpoint import Route, load_model, seal, write_model
from headprune.config import Recipe
from headprune.errors import ConfigError, DataError, HeadpruneError, PlanError, ProofError
from headprune.evaluation import EvalResult, Predictions, first_examples, judge, latency_ms, predict
from headprune.heads import Artefact, HeadMask, HeadScores, PruningPlan, read_artefact
from headprune.inspection import inspect
from headprune.masking import gated
from headprune.models import ModelSource, find, fingerprint, load_tokenizer, versions
from headprune.replay import Batch
from headprune.report.card import model_card
from headprune.results import Results
from headprune.runs import latest_scores
from headprune.scoring import score as score_heads
from headprune.selection import Constraints, check_constraints, make_plan, parameters_removed
from headprune.surgery import cut
from headprune.tasks import Task, detect_task, get_task
from headprune.tasks.data import (
    Columns,
    Example,
    choose_columns,
    draw,
    fingerprint as data_fingerprint,
    hold_out,
    read_table,
    without_overlap,
)
from headprune.verify import Proof, main_output, masked_equals_pruned, parameters_add_up, reload_is_identical

# Rows on which masked == pruned and reload == memory are proven.
_PROOF_ROWS = 16


@runtime_checkable
class Voice(Protocol):
    """How a stage talks while it works."""

    def say(self, text: str) -> None:
        """Tell the user what is going on."""

    def track(self, items: Sequence[Batch], description: str) -> Iterable[Batch]:
        """Yield the items, showing progress."""


@dataclass(frozen=True)
class Subject:
    """A loaded model with what belongs to it."""

    recipe: Recipe
    source: ModelSource
    model: PreTrainedModel
    tokenizer: Any
    task: Task

    def accepts(self, name: str) -> bool:
        """Whether the model's forward takes an input of this name."""
        import inspect as python_inspect

        return name in python_inspect.signature(self.model.forward).parameters

    def batches(self, examples: Sequence[Example]) -> tuple[Batch, ...]:
        """Turn examples into batches."""
        return self.task.to_batches(
            examples, self.tokenizer, self.max_length, self.recipe.batch_size, self.accepts
        )

    @property
    def max_length(self) -> int:
        """The longest input: what was asked for, or what the model's positions allow."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        # RoBERTa counts its positions from padding_idx + 1 on.
        taken = (self.model.config.pad_token_id or 0) + 1 if "roberta" in self.model.config.model_type else 0
        return min(self.recipe.max_length, positions - taken) if positions else self.recipe.max_length


@dataclass(frozen=True)
class Rows:
    """Examples, and what is noted of them in every artefact."""

    examples: tuple[Example, ...]
    note: dict[str, Any]


def open_subject(recipe: Recipe, *, voice: Voice) -> Subject:
    """Find and load the model and its tokenizer, and settle the task."""
    source = find(_model_name(recipe), revision=recipe.revision)
    name = recipe.task or detect_task(source.config, model_directory=source.directory)
    task = get_task(name, model_directory=source.directory)
    model = load_model(
        source, auto_class=task.auto_class, device=recipe.device, dtype=recipe.dtype
    )
    device = next(model.parameters()).device
    voice.say(f"model {recipe.model} ({model.config.model_type}), task {name}, on {device}")
    return Subject(recipe, source, model, load_tokenizer(source), task)


def _model_name(recipe: Recipe) -> str:
    if recipe.model is None:
        raise ConfigError(
            "no model is named",
            where="MODEL",
            hint="name a directory or a hub id, such as demo:minilm",
        )
    return recipe.model


def calibration_rows(subject: Subject, *, voice: Voice) -> Rows:
    """Return the rows that choose the heads."""
    return _separate_rows(subject, voice=voice)[0]


def evaluation_rows(subject: Subject, *, voice: Voice) -> Rows:
    """Return the rows of ``eval`` and ``check``: all of the evaluation data, or of the data where there is no other."""
    recipe = subject.recipe
    source, split = recipe.eval_data or recipe.data, recipe.eval_split or recipe.split
    examples, note = _read(subject, source, split, voice=voice)
    return _noted(draw(examples, recipe.limit, seed=recipe.seed), note)


def _separate_rows(subject: Subject, *, voice: Voice) -> tuple[Rows, Rows]:
    """Return rows that choose and rows that report: no input is in both."""
    recipe = subject.recipe
    examples, note = _read(subject, recipe.data, recipe.split, voice=voice)
    count = min(recipe.num_samples, recipe.limit or recipe.num_samples)
    if recipe.eval_data or recipe.eval_split:
        reporting, other = _read(
            subject, recipe.eval_data or recipe.data, recipe.eval_split, voice=voice
        )
        free = without_overlap(examples, reporting)
        if len(free) < len(examples):
            voice.say(f"{len(examples) - len(free)} calibration rows are evaluation rows too; left out")
        choosing = draw(free, count, seed=recipe.seed)
    else:
        choosing, reporting = hold_out(examples, count=count, seed=recipe.seed)
        other = {**note, "held_out": True}
        voice.say(
            f"no --eval-data: {len(choosing):,} rows choose the heads, the other {len(reporting):,} report"
        )
    if not choosing or len(reporting) < 2:
        raise DataError(
            f"{len(choosing)} rows are left to choose heads and {len(reporting)} to report on",
            where=f"--data {recipe.data}",
            hint="give more rows, or --eval-data with other rows than --data",
        )
    return _noted(choosing, note), _noted(draw(reporting, recipe.limit, seed=recipe.seed), other)


def _read(
    subject: Subject, source: str | None, split: str | None, *, voice: Voice
) -> tuple[tuple[Example, ...], dict[str, Any]]:
    if source is None:
        raise DataError(
            "no data is named",
            where="--data",
            hint="say --data FILE (csv, tsv, json, jsonl, parquet, txt) or --data HUB_ID",
        )
    recipe, task = subject.recipe, subject.task
    table = read_table(source, split=split, label=recipe.label)
    columns: Columns = choose_columns(
        table,
        texts=recipe.text,
        label=recipe.label,
        num_texts=task.num_texts,
        needs_label=task.needs_label,
    )
    label = f", label {columns.label!r}" if columns.label else ""
    shown = f"{source} {table.split}" if table.split else source
    voice.say(f"{shown}: text {', '.join(map(repr, columns.texts))}{label} ({columns.why})")
    examples = task.to_examples(
        table, columns, subject.tokenizer, subject.model.config, subject.max_length
    )
    return examples, {"name": source, "split": table.split, "task": task.name}


def _noted(examples: tuple[Example, ...], note: dict[str, Any]) -> Rows:
    return Rows(examples, {**note, "fingerprint": data_fingerprint(examples), "n": len(examples)})


def model_note(subject: Subject) -> dict[str, Any]:
    """Return what artefacts say of the model; a pruned one names what it was pruned from."""
    note = {
        "name": subject.source.name,
        "revision": subject.source.revision,
        "model_type": subject.model.config.model_type,
        "fingerprint": fingerprint(subject.model),
    }
    origin = pruning_record(subject.model.config).get("source")
    return {**note, "source": origin} if origin else note


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
    source = find(_model_name(recipe), revision=recipe.revision)
    model = load_model(source, auto_class=None, device=recipe.device, dtype=recipe.dtype)
    voice.say(f"model {recipe.model} ({model.config.model_type})")
    return inspect(model)


def plan(
    recipe: Recipe, *, voice: Voice, show: Callable[[HeadScores, PruningPlan], None]
) -> PruningPlan:
    """Choose the heads that would go, and write nothing."""
    subject = open_subject(recipe, voice=voice)
    anatomy = inspect_for_pruning(subject, voice=voice)
    return _plan(subject, anatomy, calibration_rows(subject, voice=voice), voice=voice, show=show)[1]


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
    size = sum(path.stat().st_size for path in subject.source.weight_files)
    refuse_unusable_target(out, overwrite=recipe.overwrite, needed_bytes=size)
    anatomy = inspect_for_pruning(subject, voice=voice)
    check_constraints(anatomy, _constraints(recipe))
    choosing, reporting = _separate_rows(subject, voice=voice)
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


def _find_scores(
    subject: Subject, anatomy: Anatomy, rows: Rows, *, voice: Voice
) -> HeadScores:
    """Return the scores that were named, else the latest run's if they fit, else new ones."""
    recipe = subject.recipe
    mine = fingerprint(subject.model)
    if recipe.scores is not None:
        scores = read_artefact(HeadScores, Path(recipe.scores))
        if scores.model.get("fingerprint", mine) != mine:
            raise PlanError(
                f"the scores are of another model ({scores.model.get('name')})",
                where=f"--scores {recipe.scores}",
                hint="score this one: headprune score MODEL",
            )
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
        voice.say(f"the latest run ({path}) has scores of another model, data or method: scoring anew")
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
    after, new = _evaluate(subject, rows, heads=len(anatomy.heads), voice=voice)
    difference, interval, _ = judge(
        new,
        before.metric,
        seed=subject.recipe.seed,
        higher_is_better=subject.recipe.higher_is_better,
        other=old,
    )
    proofs = [
        masked_equals_pruned(masked, main_output(model, sample.inputs), rows=sample.num_rows)
    ]
    _insist(proofs)
    with staged_directory(out, overwrite=subject.recipe.overwrite) as staging:
        route: Route = write_model(
            model,
            staging,
            anatomy=anatomy,
            tokenizer=subject.tokenizer,
            source=subject.source.directory,
        )
        voice.say("loading it again in a fresh process")
        proofs.append(
            reload_is_identical(
                model, staging, inputs=sample.inputs, auto_class=subject.task.auto_class, route=route
            )
        )
        proofs.append(
            parameters_add_up(
                before=before.parameters, removed=expected, directory=staging, model=model
            )
        )
        _insist(proofs)
        results = Results(
            before=before,
            after=after,
            difference=difference,
            difference_interval=interval,
            proofs=tuple(proofs),
            weights_bytes=(_bytes(subject.source.directory), _bytes(staging)),
            removed=tuple(str(head) for head in plan.remove),
            loads_with=route,
            auto_class=subject.task.auto_class,
            calibration={**scores.data, "method": scores.method, "n": scores.n},
        )
        documents: dict[str, Artefact] = {"scores": scores, "plan": plan, "results": results}
        for name, document in documents.items():
            (staging / f"{name}.json").write_text(document.to_json(), encoding="utf-8")
        (staging / "headprune.yaml").write_text(subject.recipe.to_yaml(), encoding="utf-8")
        card = model_card(results, plan, source=subject.source)
        (staging / "README.md").write_text(card, encoding="utf-8")
        seal(staging)
    return results


def _insist(proofs: Sequence[Proof]) -> None:
    """Stop where a proof says no.

    Raises:
        ProofError: See above.
    """
    for proof in proofs:
        if not proof.passed:
            raise ProofError(
                f"the proof '{proof.name}' failed: {proof.measured:.3g} where {proof.limit:.3g} is allowed",
                where=proof.detail,
                hint="nothing was saved; please report the model type and the plan",
            )


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
