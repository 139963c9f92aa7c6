"""The public functions, on objects already in memory. Nothing here reads or writes files but :func:`save` and :func:`load`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy
from headprune.artefact import LoadMethod
from headprune.batch import batches_for
from headprune.config import AnalyzeSpec, Constraints, ScoreSpec, Settings
from headprune.config.checks import check_score
from headprune.heads import HeadId, HeadSelection
from headprune.inspection import inspect as inspect_model
from headprune.masking import checked_gates, gated, gates_by_site
from headprune.models.load import load
from headprune.models.manifest import refuse_source
from headprune.models.save import MAX_SHARD_SIZE, let_it_save_itself
from headprune.passes import SILENT
from headprune.placement import input_device, staged
from headprune.planning.constraints import require_budget, with_role_heads
from headprune.planning.costs import cost_model
from headprune.planning.plan import make_plan, with_roles
from headprune.plans import HeadScores, PruningPlan
from headprune.scoring.catalogue import DEFAULT_METHOD, get_method
from headprune.surgery.cut import cut
from headprune.workflows.finish import InMemory, save_described
from headprune.workflows.in_memory import (
    Batches,
    Loss,
    ShrinkReport,
    home_directory,
    noted,
    objective_of,
    refuse_other_roles,
    removed_heads,
    roles_of,
    shrink_model,
)
from headprune.workflows.stepwise import Scoring, score_with_steps
from headprune.wrapped import refuse_own_code, unwrapped

__all__ = ["analyze", "inspect", "load", "masked", "plan", "prune", "save", "score", "shrink"]

Heads: TypeAlias = (
    PruningPlan
    | HeadSelection
    | Tensor
    | Mapping[str, Tensor | Sequence[int]]
    | Sequence[PruningPlan | str | HeadId | Mapping[str, Sequence[int]]]
)
"""Names, HeadIds, ``{"L0": [1, 3]}``, a plan, a list of any of these, or gates as tensors."""


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return where the heads of ``model`` are, after proving on a tiny copy of it that they can be pruned.

    Args:
        model: The model; it isn't run, and nothing of it is changed. A wrapped model (compiled, DataParallel, a pipeline) is
            unwrapped where that is exact; the functions below do the same.

    Raises:
        ModelError: It isn't a model of transformers, but something that holds one.
        UnsupportedError: No heads can be found, or cutting them is not the same as masking them.
    """
    return inspect_model(unwrapped(model, use="inspect"))


@contextmanager
def masked(
    model: PreTrainedModel, heads: Heads, *, anatomy: Anatomy | None = None
) -> Iterator[None]:
    """Silence heads of ``model`` while the block lasts; exact, with any attention kernel.

    >>> with hp.masked(model, ["L0.H1", "L0.H3"]):  # doctest: +SKIP
    ...     model(**inputs)

    Args:
        model: The model.
        heads: The heads to silence, in the forms that :func:`prune` takes. Or gates that multiply heads, as tensors on any
            device: [heads] or [rows, heads] over all of ``anatomy.heads``, or such a tensor for each site,
            ``{"L0": gates, "L1": [1, 3]}``; sites that aren't named are untouched.
        anatomy: The model's anatomy, if it is known already.

    Raises:
        PlanError: A head or site is named that the model doesn't have, or gates have another shape.
        UnsupportedError: The model's heads can't be found.
        ModelError: A forward ran, and a site was not masked in it.
    """
    model = unwrapped(model, use="mask")
    anatomy, device = anatomy or inspect_model(model), input_device(model)
    if isinstance(heads, Tensor):
        gates = checked_gates(heads, len(anatomy.heads), rows=None, name="the model")
    elif isinstance(heads, Mapping) and any(isinstance(part, Tensor) for part in heads.values()):
        gates = gates_by_site(anatomy, heads, device=device)
    else:
        gates = anatomy.mask(removed_heads(model, anatomy, heads))
    with gated(model, anatomy, gates=staged(gates, device)):
        yield


def score(
    model: PreTrainedModel,
    batches: Batches = (),
    *,
    loss: Loss | None = None,
    task: str | None = None,
    method: str | ScoreSpec = DEFAULT_METHOD,
    seed: int = 0,
    anatomy: Anatomy | None = None,
) -> HeadScores:
    """Score every head of ``model``.

    Args:
        model: The model; run in eval mode and left as it was.
        batches: Calibration data: mappings of tensors as a DataLoader gives them (``labels`` become ``batch.targets``; of
            an encoder-decoder, the decoder's inputs as well, as the model itself makes them), or
            :class:`~headprune.batch.Batch` values. Methods that need no data take none.
        loss: ``loss(outputs, batch) -> [examples]``, one number per example, smaller is better.
        task: The task whose loss it is, instead: ``classification``, ``regression``, ``causal-lm``.
        method: A name that ``headprune methods`` lists, or an ``hp.ScoreSpec`` that also says how scores are normalised.
        seed: For methods that draw random numbers.
        anatomy: The model's anatomy, if it is known already.

    Raises:
        ConfigError: There is no such method or task, or neither a loss nor a task is given where one is needed.
        UnsupportedError: The model's heads can't be found.
    """
    model = unwrapped(model, use="score")
    anatomy = anatomy or inspect_model(model)
    spec = method if isinstance(method, ScoreSpec) else ScoreSpec(method=get_method(method).name)
    check_score(spec, Constraints())
    objective, _task = objective_of(model, batches, loss, task, score=spec, seed=seed)
    settings = Settings()
    scoring = Scoring(spec, settings.plan, settings.reconstruct, seed)
    scores = score_with_steps(model, anatomy, objective, scoring, context=SILENT)
    return noted(model, scores)


def analyze(
    model: PreTrainedModel,
    batches: Batches = (),
    *,
    roles: Sequence[str] | AnalyzeSpec = (),
    tokenizer: Any = None,
    seed: int = 0,
    anatomy: Anatomy | None = None,
) -> Roles:
    """Measure what every head of ``model`` does: sinks, positions, induction, ...

    Args:
        model: The model; run in eval mode, with its plain attention, and left as it was.
        batches: Data as :func:`score` takes it; no label is read. Roles of causal language models on made-up sequences need none.
        roles: Names that ``headprune roles`` lists (default: all), or an ``hp.AnalyzeSpec`` that also says what is made up.
        tokenizer: The model's; without it, roles that ask for certain tokens ([CLS], punctuation) aren't measured.
        seed: Of what is made up.
        anatomy: The model's anatomy, if it is known already.

    Returns:
        The roles; those that couldn't be measured are in ``undefined``, with the reason.

    Raises:
        ConfigError: There is no such role.
        UnsupportedError: The model's heads can't be found.
    """
    model = unwrapped(model, use="score")
    spec = roles if isinstance(roles, AnalyzeSpec) else AnalyzeSpec(role=tuple(roles))
    anatomy = anatomy or inspect_model(model)
    return roles_of(model, anatomy, spec, batches=batches, tokenizer=tokenizer, seed=seed)


def plan(
    scores: HeadScores,
    constraints: Constraints,
    *,
    anatomy: Anatomy,
    model: PreTrainedModel | None = None,
    batches: Batches = (),
    roles: Roles | None = None,
) -> PruningPlan:
    """Choose the heads to remove: the least important ones that the budget, the architecture and the constraints allow.

    Args:
        scores: The importance of every head.
        constraints: The budget, and what else to keep to: ``Constraints(keep=0.7)``. The budget is one of ``keep`` (a share
            of the heads), ``heads`` (the most heads) or a target for the pruned model, as a share of the whole (``0.8``,
            ``"80%"``) or a number (``"20M"``, ``"12ms"``).
        anatomy: Where the heads are.
        model: The model, for targets.
        batches: For ``target_latency``: data as :func:`score` takes it; the time is measured here, on the model.
        roles: What heads do (:func:`analyze`), for ``Constraints(protect_role=...)``; the plan says what becomes of them.

    Raises:
        PlanError: There is no budget, or it is out of reach; the constraints contradict each other or the model; scores and roles
            are of different models.
    """
    require_budget(constraints, where="`constraints`")
    refuse_other_roles(roles, scores.model.get("fingerprint"))
    constraints = with_role_heads(constraints, roles)
    costs = None
    if model is not None:
        rows = batches_for(model, batches) if constraints.target_latency and batches else ()
        costs = cost_model(model, anatomy, constraints=constraints, batches=lambda: rows)
    return with_roles(make_plan(scores, anatomy, constraints=constraints, costs=costs), roles)


def prune(
    model: PreTrainedModel, heads: Heads, *, anatomy: Anatomy | None = None, pad: bool = False
) -> PreTrainedModel:
    """Cut heads out of ``model``, in place, and return it.

    Its ``save_pretrained`` then writes what :func:`load` and ``from_pretrained`` read; so do Trainer's checkpoints and
    ``push_to_hub``, which call it. :func:`save` also proves it, and adds what made the source work.

    Args:
        model: The model; may have been pruned before. Heads keep their original names.
        heads: What to remove: names, HeadIds, ``{"L0": [1, 3]}``, a plan, or a list of any of these.
        anatomy: The model's anatomy, if it is known already.
        pad: Pad key/value groups of unequal size with zeros; not needed for a plan made with ``gqa=pad``.

    Raises:
        PlanError: A head isn't there, or the remaining heads can't run; the plan is of another model. Nothing was changed then.
        UnsupportedError: The model's heads can't be found.
    """
    model = unwrapped(model, use="prune")
    anatomy = anatomy or inspect_model(model)
    source = model.config.name_or_path
    pad = pad or (isinstance(heads, PruningPlan) and heads.is_padded)
    smaller = cut(model, anatomy, remove=removed_heads(model, anatomy, heads), pad=pad)
    let_it_save_itself(model, smaller, source=source or "")
    return model


def shrink(
    model: PreTrainedModel,
    batches: Batches,
    *,
    loss: Loss | None = None,
    task: str | None = None,
    keep: float | Constraints,
    settings: Settings | None = None,
    roles: Roles | None = None,
) -> tuple[PreTrainedModel, ShrinkReport]:
    """Score, plan, reconstruct and cut, in place, as ``headprune prune`` does: the same heads and weights for the same rows.

    Args:
        model: The model.
        batches: Calibration data as :func:`score` takes it. Three quarters of the examples, in their order, fit the output
            projections; the others say whether that helped (metric or loss). On packed images nothing is fitted.
        loss: ``loss(outputs, batch) -> [examples]``.
        task: The task whose loss and metric they are, instead.
        keep: The share of the heads to keep, or all that the plan must keep to.
        settings: How heads are scored and the remaining heads reconstructed: ``hp.Settings.of(method="fisher", steps=1)``.
        roles: What heads do (:func:`analyze`), for ``Constraints(protect_role=...)``; the plan says what becomes of them.

    Returns:
        The model, and what was done.

    Raises:
        ConfigError: Settings contradict each other, or neither a loss nor a task is given.
        PlanError: There is no budget, or it is out of reach.
        UnsupportedError: The model's heads can't be found.
    """
    model = unwrapped(model, use="prune")
    anatomy = inspect_model(model)
    constraints = keep if isinstance(keep, Constraints) else Constraints(keep=keep)
    require_budget(constraints, where="`keep`")
    settings = (settings or Settings()).model_copy(update={"plan": constraints})
    source = model.config.name_or_path
    objective, known = objective_of(
        model, batches, loss, task, score=settings.score, seed=settings.data.seed
    )
    smaller, report = shrink_model(model, anatomy, objective, known, settings=settings, roles=roles)
    let_it_save_itself(model, smaller, source=source or "")
    return model, report


def save(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    plan: PruningPlan | None = None,
    scores: HeadScores | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> LoadMethod:
    """Save a pruned model with all that made its source work, all or nothing, and prove in a fresh process that it loads.

    Args:
        model: The model, pruned or not.
        directory: Where to; must not exist or be empty unless ``overwrite``.
        plan: What it was pruned by: written beside it (``plan.json``), with a model card.
        scores: What the plan was made from: written beside it (``scores.json``).
        tokenizer: Saved beside it: as the files that it was loaded from, unless it was changed since.
        overwrite: Replace what is there.
        max_shard_size: Weights larger than this are split over several files.

    Returns:
        ``stock`` where plain ``from_pretrained`` loads it, ``remote-code`` where it needs ``trust_remote_code=True``.

    Raises:
        CheckpointError: The directory isn't empty, a write failed, or transformers can't save such a model.
        ProofError: What was saved isn't the model; nothing was saved.
        ModelError: It isn't a model of transformers' own classes.
    """
    model = unwrapped(model, use="save")
    refuse_own_code(model)
    home, out = home_directory(model), Path(directory)
    if home is not None:
        refuse_source(out, home)
    anatomy = inspect_model(model)
    saved = InMemory(model, anatomy, home, tokenizer=tokenizer, max_shard_size=max_shard_size)
    return save_described(saved, out, plan=plan, scores=scores, overwrite=overwrite)
