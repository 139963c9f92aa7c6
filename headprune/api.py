"""The public functions, on objects already in memory. Nothing here reads or writes files but :func:`save` and :func:`load`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import stock_class
from headprune.batch import Batch, batches_for
from headprune.config import Constraints
from headprune.errors import PlanError, did_you_mean
from headprune.heads import HeadId, HeadSelection, select_heads
from headprune.inspection import inspect as inspect_model
from headprune.masking import checked_gates, gated, gates_by_site
from headprune.models.classes import auto_class_of
from headprune.models.describe import LoadMethod
from headprune.models.facts import fingerprint, versions, weights_bytes
from headprune.models.find import ModelSource
from headprune.models.load import load
from headprune.models.manifest import refuse_source
from headprune.models.save import MAX_SHARD_SIZE, let_it_save_itself, own_save
from headprune.models.side_files import root_of
from headprune.models.tokenizer import home_of
from headprune.placement import count_parameters, input_device, staged
from headprune.planning import cost_model, make_plan
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.scoring.catalogue import METHODS
from headprune.scoring.request import ScoreRequest
from headprune.scoring.score import score as score_heads
from headprune.surgery import cut
from headprune.workflows.finish import InMemory, Written, documents_of, finish
from headprune.wrapped import refuse_own_code, unwrapped

__all__ = ["inspect", "load", "masked", "plan", "prune", "save", "score"]


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return where the heads of ``model`` are, after proving on a tiny copy of it that they can be pruned.

    Args:
        model: The model; it isn't run, and nothing of it is changed. Of one that is compiled, parallel, in a pipeline or in
            sentence-transformers, the model inside is taken, here and below, wherever that is exact.

    Raises:
        ModelError: It isn't a model of transformers, but something that holds one.
        UnsupportedError: No heads can be found, or cutting them is not the same as masking them.
    """
    return inspect_model(unwrapped(model, use="inspect"))


@contextmanager
def masked(
    model: PreTrainedModel,
    heads: PruningPlan | HeadSelection | Tensor | Mapping[str, Tensor | Sequence[int]],
    *,
    anatomy: Anatomy | None = None,
) -> Iterator[None]:
    """Silence heads of ``model`` while the block lasts; exact, with any attention kernel.

    >>> with hp.masked(model, ["L0.H1", "L0.H3"]):  # doctest: +SKIP
    ...     model(**inputs)

    Args:
        model: The model.
        heads: The heads to silence: names, HeadIds, ``{"L0": [1, 3]}`` or a plan. Or gates that multiply
            heads, as tensors on any device: [heads] or [rows, heads] over all of ``anatomy.heads``, or such a tensor for each
            site, ``{"L0": gates, "L1": [1, 3]}``; sites that aren't named are untouched.
        anatomy: The model's anatomy, if it is known already.

    Raises:
        PlanError: A head or site is named that the model doesn't have, or gates have another shape.
        UnsupportedError: The model's heads can't be found.
        ModelError: A forward ran, and a site was not masked in it.
    """
    model = unwrapped(model, use="mask")
    anatomy = anatomy or inspect_model(model)
    device = input_device(model)
    if isinstance(heads, Tensor):
        gates = checked_gates(heads, len(anatomy.heads), rows=None, name="the model")
    elif isinstance(heads, Mapping) and any(isinstance(part, Tensor) for part in heads.values()):
        gates = gates_by_site(anatomy, heads, device=device)
    else:
        names = _planned(model, heads) if isinstance(heads, PruningPlan) else heads
        gates = anatomy.mask(names)
    with gated(model, anatomy, gates=staged(gates, device)):
        yield


def _planned(model: PreTrainedModel, plan: PruningPlan) -> tuple[HeadId, ...]:
    """Return the heads that a plan removes.

    Raises:
        PlanError: It is of another model.
    """
    made_for = plan.model.get("fingerprint")
    if made_for is not None and made_for != fingerprint(model):
        raise PlanError(
            f"the plan was made for another model ({plan.model.get('name', made_for)})",
            where="plan",
            hint="make it from scores of this model, or name the heads: plan.remove",
        )
    return plan.remove


def score(
    model: PreTrainedModel,
    batches: Iterable[Batch | Mapping[str, Tensor]],
    *,
    loss: Callable[[Any, Batch], Tensor],
    method: str = "gradient",
    normalize: Literal["none", "layer", "standard"] = "none",
    seed: int = 0,
    anatomy: Anatomy | None = None,
) -> HeadScores:
    """Score every head of ``model``.

    Args:
        model: The model; run in eval mode and left as it was.
        batches: Calibration data: mappings of tensors as a DataLoader gives them (``labels`` become ``batch.targets``; of
            an encoder-decoder, the decoder's inputs as well, as the model itself makes them), or
            :class:`~headprune.replay.Batch` values.
        loss: ``loss(outputs, batch) -> [examples]``, one number per example, smaller is better.
        method: ``gradient`` (Michel et al. 2019, eq. 2), ``ablation``, ... : a name of ``headprune.scoring.catalogue.METHODS``.
        normalize: ``layer`` divides by the l2 norm of each layer's scores, ``standard`` makes their mean 0 and their deviation 1.
        seed: For methods that draw random numbers.
        anatomy: The model's anatomy, if it is known already.

    Raises:
        PlanError: There is no such method.
        UnsupportedError: The model's heads can't be found.
    """
    if method not in METHODS:
        raise PlanError(
            f"there is no method {method!r}", where="method", hint=did_you_mean(method, METHODS)
        )
    model = unwrapped(model, use="score")
    request = ScoreRequest(
        model, anatomy or inspect_model(model), batches_for(model, batches), loss, seed=seed
    )
    found = score_heads(request, method=method, normalize=normalize)
    note = {"model_type": model.config.model_type, "fingerprint": fingerprint(model)}
    return found.model_copy(update={"model": note, "versions": versions()})


def plan(
    scores: HeadScores,
    constraints: Constraints,
    *,
    anatomy: Anatomy,
    model: PreTrainedModel | None = None,
    batches: Iterable[Batch | Mapping[str, Tensor]] = (),
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

    Raises:
        PlanError: There is no budget, or it is out of reach; the constraints contradict each other or the model.
    """
    if not constraints.budgets or constraints.max_drop is not None:
        raise PlanError(
            "there is no budget that a plan can be made by",
            where="`constraints`",
            hint="give one of `keep`, `heads`, `target_parameters`, `target_flops`, `target_kv_cache`, `target_latency`",
        )
    costs = None
    if model is not None:
        rows = batches_for(model, batches) if constraints.target_latency and batches else ()
        costs = cost_model(model, anatomy, constraints=constraints, batches=lambda: rows)
    return make_plan(scores, anatomy, constraints=constraints, costs=costs)


def prune(
    model: PreTrainedModel,
    heads: PruningPlan | HeadSelection,
    *,
    anatomy: Anatomy | None = None,
    pad: bool = False,
) -> PreTrainedModel:
    """Cut heads out of ``model``, in place, and return it.

    Its ``save_pretrained`` then writes what :func:`load` and ``from_pretrained`` read; so do Trainer's checkpoints and
    ``push_to_hub``, which call it. :func:`save` also proves it, and adds what made the source work.

    Args:
        model: The model; may have been pruned before. Heads keep their original names.
        heads: A plan, or heads to remove in the forms that :func:`masked` takes.
        anatomy: The model's anatomy, if it is known already.
        pad: Even out key/value groups that would be left uneven with dead weight; a plan made so says it itself.

    Raises:
        PlanError: A head isn't there, or what would be left can't run; the plan is of another model. Nothing was changed then.
        UnsupportedError: The model's heads can't be found.
    """
    model = unwrapped(model, use="prune")
    anatomy = anatomy or inspect_model(model)
    source = model.config.name_or_path
    if isinstance(heads, PruningPlan):
        remove = select_heads(_planned(model, heads), anatomy.heads)
        pad = pad or heads.is_padded
    else:
        remove = select_heads(heads, anatomy.heads)
    smaller = cut(model, anatomy, remove=remove, pad=pad)
    let_it_save_itself(model, smaller, source=source or "")
    return model


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
    """Save a pruned model so that it loads again: atomically, as safetensors, with a manifest, and proven in a fresh process.

    What else made the model's source work (its tokenizer's files, pooling, settings of a processor) is copied, where the model
    was loaded from a directory that is still there.

    Args:
        model: The model, pruned or not.
        directory: Where to; must not exist or be empty unless ``overwrite``.
        plan: What it was pruned by: written beside it (``plan.json``), with a model card.
        scores: What the plan was made from: written beside it (``scores.json``).
        tokenizer: Saved beside it: as the files that it was loaded from, unless it was changed since.
        overwrite: Replace what is there.
        max_shard_size: Weights larger than this are split over several files.

    Returns:
        ``stock`` where plain ``from_pretrained`` loads it, ``remote-code`` where ``trust_remote_code=True`` or
        :func:`load` is needed.

    Raises:
        CheckpointError: The directory isn't empty, a write failed, or transformers can't save such a model; nothing is left
            half-written.
        ProofError: What was saved isn't the model; nothing was saved.
        ModelError: It isn't a model of transformers' own classes.
    """
    model = unwrapped(model, use="save")
    refuse_own_code(model)
    anatomy, out, home = inspect(model), Path(directory), _source_of(model)
    if home is not None:
        refuse_source(out, home)
    removed = plan.remove if plan else ()
    taken = (plan.budget.get("saves") or {}).get("parameters") if plan else 0
    size = count_parameters(model)
    saved = InMemory(model, anatomy, home, tokenizer=tokenizer, max_shard_size=max_shard_size)

    def results(written: Written, weights: int) -> Results:
        return Results(
            heads=(len(anatomy.heads) + len(removed), len(anatomy.heads)),
            parameters=(None if taken is None else size + taken, size),
            proofs=written.proofs,
            weights_bytes=((weights_bytes(home) or None) if home else None, weights),
            removed=tuple(map(str, removed)),
            loads_with=written.loads_with,
            auto_class=auto_class_of(stock_class(model)),
            calibration={**scores.data, "method": scores.method, "n": scores.n} if scores else {},
        )

    def documents(results: Results) -> dict[str, str]:
        if plan is None and scores is None:
            return {}
        source = None
        if home is not None:
            source = ModelSource(home.name, home, None, model.config)
        return documents_of(results, plan, scores, source=source)

    outcome = finish(
        out, overwrite=overwrite, write=saved.write, results=results, documents=documents
    )
    return outcome.loads_with


def _source_of(model: PreTrainedModel) -> Path | None:
    """Return the directory that a model was loaded from, before it was pruned, if it is there."""
    saving = own_save(model)
    home = home_of(model.config.name_or_path or (saving.source if saving else ""))
    return home and root_of(home)
