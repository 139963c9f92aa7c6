"""Helpers of the public functions on objects in memory: heads in any form, a loss or a task, all of ``prune``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, get_role
from headprune.analysis.request import RoleRequest, measure
from headprune.analysis.roles import Roles
from headprune.anatomy.clone import stock_class
from headprune.anatomy.sites import Anatomy
from headprune.artefact import DEFAULT_RECONSTRUCT, Reconstruct
from headprune.batch import Batch, batches_for, evaluating, num_examples
from headprune.config import AnalyzeSpec, ScoreSpec, Settings
from headprune.errors import ConfigError, PlanError
from headprune.heads import HeadId, select_heads
from headprune.inspection import inspect
from headprune.models.classes import auto_class_of
from headprune.models.save import own_save
from headprune.models.side_files import root_of
from headprune.models.tokenizer import home_of
from headprune.passes import SILENT
from headprune.placement import fingerprint, versions
from headprune.planning.costs import cost_model
from headprune.planning.plan import make_plan, with_roles
from headprune.planning.problem import check_constraints
from headprune.plans import HeadScores, PruningPlan
from headprune.scoring.catalogue import get_method
from headprune.surgery.cut import cut
from headprune.surgery.projections import can_fit
from headprune.surgery.reconstruct import RECONSTRUCT_METHODS, reconstruct
from headprune.tasks.distill import NO_OBJECTIVE, Objective
from headprune.tasks.load_metric import metric_for, objective_for
from headprune.tasks.task import Task, get_task
from headprune.workflows.reconstruct import HeldOutRows, allowed_biases, take_back_unmoved
from headprune.workflows.rows import Purpose, num_fitted
from headprune.workflows.stepwise import (
    FEWEST_TO_RECONSTRUCT,
    Scoring,
    check_settings,
    method_of,
    score_with_steps,
    with_protected_heads,
)

Loss: TypeAlias = Callable[[Any, Batch], Tensor]
Batches: TypeAlias = Iterable[Batch | Mapping[str, Tensor]]


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`shrink` did.

    Args:
        scores: How important each head was when it was removed, or in the end.
        plan: Which heads were removed.
        reconstruct: What reconstructing the output projections did; None if it wasn't tried.
    """

    scores: HeadScores
    plan: PruningPlan
    reconstruct: Reconstruct | None


def shrink_model(
    model: PreTrainedModel,
    anatomy: Anatomy,
    objective: Objective,
    task: Task | None,
    *,
    settings: Settings,
    roles: Roles | None = None,
) -> tuple[Anatomy, ShrinkReport]:
    """Score, plan, reconstruct and cut, in place; return the anatomy of the remaining heads, and a report."""
    spec, seed, notify = settings.reconstruct, settings.data.seed, SILENT.notify
    if settings.distill.heal is not None:
        raise ConfigError(
            "on objects in memory nothing is trained",
            where=f"`heal={settings.distill.heal}`",
            hint="leave it out, or use the command line: headprune prune MODEL --heal auto",
        )
    check_settings(settings)
    if roles is not None:
        refuse_other_roles(roles, fingerprint(model))
    constraints = with_protected_heads(model, anatomy, settings.plan, roles=roles, notify=notify)
    batches = objective.batches
    costs = cost_model(model, anatomy, constraints=constraints, batches=lambda: batches)
    check_constraints(anatomy, constraints, costs=costs)
    scoring = Scoring(settings.score, constraints, spec, seed)
    scores = noted(model, score_with_steps(model, anatomy, objective, scoring, context=SILENT))
    plan = with_roles(make_plan(scores, anatomy, constraints=constraints, costs=costs), roles)
    count = num_examples(batches)
    outcome = None
    added = allowed_biases(model, anatomy, plan, spec, notify=notify)
    anatomy = inspect(model) if added else anatomy
    is_on = spec.reconstruct != "none" and bool(plan.remove)
    if (
        is_on
        and all(batch.comes_by_row for batch in batches)
        and count >= FEWEST_TO_RECONSTRUCT
        and can_fit(model, anatomy)
    ):
        fitted = num_fitted(count, Purpose().held_out)
        unseen = replace(objective, batches=_examples(batches, range(fitted, count)))
        held_out = HeldOutRows(model, anatomy, unseen, seed=seed)
        if task is not None and settings.score.objective != "distill":
            held_out = replace(held_out, task=task, metric=metric_for(task, model.config))
        outcome = reconstruct(
            model,
            anatomy,
            batches=_examples(batches, range(fitted)),
            held_out=held_out.judge(),
            remove=plan.remove,
            methods=RECONSTRUCT_METHODS[spec.reconstruct or DEFAULT_RECONSTRUCT],
        )
    if added and take_back_unmoved(model, added, outcome):
        anatomy = inspect(model)
    smaller = cut(model, anatomy, remove=plan.remove, pad=plan.is_padded)
    return smaller, ShrinkReport(scores, plan, outcome)


def objective_of(
    model: PreTrainedModel,
    batches: Batches,
    loss: Loss | None,
    task: str | None,
    *,
    score: ScoreSpec,
    seed: int,
) -> tuple[Objective, Task | None]:
    """Return what scores measure, and the task that was named.

    Raises:
        ConfigError: Neither a loss nor a task is given, or there is no such task, or its batches aren't plain mappings.
    """
    row = get_method(method_of(score))
    given = tuple(batches)
    if not given and not row.needs_rows:
        return NO_OBJECTIVE, None
    rows = batches_for(model, given)
    if task is None:
        if score.objective != "loss":
            raise ConfigError(
                f"a loss says nothing of the {score.objective} objective, which takes a task",
                where=f"`objective={score.objective}`",
                hint='give task="classification", for example, or leave `objective` out',
            )
        if loss is None and row.needs_labels:
            raise ConfigError(
                f"{row.name} asks how the loss changes, and there is none",
                where="`loss`",
                hint='give loss=fn, task="classification", or a method that needs none: method="activation"',
            )
        return Objective(rows, rows, loss or NO_OBJECTIVE.loss), None
    known = get_task(task, model_directory=home_directory(model), config=model.config)
    if known.row.embeds_sentences:
        raise ConfigError(
            f"{task} compares two texts an example, which plain batches don't tell",
            where=f"`task={task}`",
            hint="give loss=fn, or use the command line",
        )
    if known.row.predicts == "likelihoods":  # the targets are how many tokens are predicted
        rows = tuple(_counted(batch) for batch in rows)
    metric = metric_for(known, model.config)
    about = objective_for(known, model, rows, kind=score.objective, metric=metric, seed=seed)
    return about, known


def _counted(batch: Batch) -> Batch:
    mask = batch.inputs.get("attention_mask")
    mask = torch.ones_like(batch.inputs["input_ids"]) if mask is None else mask
    return replace(batch, inputs={**batch.inputs, "attention_mask": mask}, targets=mask.sum(1) - 1)


def _examples(batches: Sequence[Batch], kept: range) -> tuple[Batch, ...]:
    """Return the examples whose places in the data are in a range, numbered from 0."""
    parts = [b.only((b.indices >= kept.start) & (b.indices < kept.stop)) for b in batches]
    return tuple(replace(p, indices=p.indices - kept.start) for p in parts if p.num_examples)


def noted(model: PreTrainedModel, scores: HeadScores) -> HeadScores:
    """Return the scores with the facts about their model."""
    note = {"model_type": model.config.model_type, "fingerprint": fingerprint(model)}
    return scores.model_copy(update={"model": note, "versions": versions()})


def roles_of(
    model: PreTrainedModel,
    anatomy: Anatomy,
    spec: AnalyzeSpec,
    *,
    batches: Batches,
    tokenizer: Any,
    seed: int,
) -> Roles:
    """Measure roles, and note the facts about the model."""
    chosen = [get_role(name) for name in spec.role] or list(ROLES.values())
    given = tuple(batches)
    rows = batches_for(model, given) if given else ()
    is_causal = auto_class_of(stock_class(model)) == "AutoModelForCausalLM"
    vocabulary = Vocabulary.of(tokenizer, rows)
    with evaluating(model):
        request = RoleRequest(model, anatomy, rows, vocabulary, tokenizer, spec, seed, is_causal)
        roles = measure(request, chosen)
    note = {"model_type": model.config.model_type, "fingerprint": fingerprint(model)}
    data = {"n": num_examples(rows)} if rows else {}
    return roles.model_copy(update={"model": note, "data": data})


def refuse_other_roles(roles: Roles | None, made_for: str | None) -> None:
    """Refuse roles that are of another model than the one with this fingerprint.

    Raises:
        PlanError: They are.
    """
    own = roles.model.get("fingerprint") if roles else None
    if own is not None and made_for is not None and own != made_for:
        raise PlanError(
            "the roles are of another model",
            where="`roles`",
            hint="measure this one's: roles=hp.analyze(model, batches)",
        )


def removed_heads(model: PreTrainedModel, anatomy: Anatomy, heads: Any) -> tuple[HeadId, ...]:
    """Return the heads that are named in any form: names, HeadIds, ``{"L0": [1, 3]}``, a plan, or a list of any of these.

    Raises:
        PlanError: A head isn't there, or a plan is of another model.
    """
    if isinstance(heads, PruningPlan):
        made_for = heads.model.get("fingerprint")
        if made_for is not None and made_for != fingerprint(model):
            raise PlanError(
                f"the plan was made for another model ({heads.model.get('name', made_for)})",
                where="`plan`",
                hint="make it from scores of this model, or name the heads: plan.remove",
            )
        return select_heads(heads.remove, anatomy.heads)
    if isinstance(heads, Mapping):
        return select_heads(heads, anatomy.heads)
    names: list[Any] = []
    for one in heads:
        is_whole = isinstance(one, PruningPlan | Mapping)
        names += removed_heads(model, anatomy, one) if is_whole else [one]
    return select_heads(names, anatomy.heads)


def home_directory(model: PreTrainedModel) -> Path | None:
    """Return the directory that a model was loaded from, before it was pruned, if it is there."""
    saving = own_save(model)
    home = home_of(model.config.name_or_path or (saving.source if saving else ""))
    return home and root_of(home)
