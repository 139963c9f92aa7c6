"""The public functions, on objects already in memory. Nothing here reads or writes files but :func:`save` and :func:`load`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import PreTrainedModel

from headprune import planning
from headprune.anatomy import Anatomy
from headprune.anatomy.clone import stock_class
from headprune.batch import Batch
from headprune.decoder_inputs import batches_for
from headprune.errors import PlanError, did_you_mean
from headprune.heads import HeadId, HeadScores, HeadSelection, PruningPlan, select_heads
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
from headprune.prices import prices_of
from headprune.results import Results
from headprune.scoring.catalogue import METHODS
from headprune.scoring.request import ScoreRequest
from headprune.scoring.score import score as score_heads
from headprune.surgery import cut
from headprune.workflows.finish import InMemory, Written, documents_of, finish
from headprune.wrapped import refuse_own_code, refuse_wrapped

__all__ = ["inspect", "load", "masked", "plan", "prune", "save", "score"]


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return where the heads of ``model`` are, after proving on a tiny copy of it that they can be pruned.

    Args:
        model: The model; it isn't run, and nothing of it is changed.

    Raises:
        ModelError: It isn't a model of transformers, but something that holds one.
        UnsupportedError: No heads can be found, or cutting them is not the same as masking them.
    """
    refuse_wrapped(model)
    return inspect_model(model)


def _anatomy(model: Any, known: Anatomy | None) -> Anatomy:
    """Return the anatomy that is known, or that of the model, which must be a plain one."""
    refuse_wrapped(model)
    return known or inspect_model(model)


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
    anatomy = _anatomy(model, anatomy)
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
    request = ScoreRequest(
        model, _anatomy(model, anatomy), batches_for(model, batches), loss, seed=seed
    )
    found = score_heads(request, method=method, normalize=normalize)
    note = {"model_type": model.config.model_type, "fingerprint": fingerprint(model)}
    return found.model_copy(update={"model": note, "versions": versions()})


def plan(
    scores: HeadScores,
    *,
    anatomy: Anatomy,
    keep: float | None = None,
    heads: int | None = None,
    target_parameters: str | int | float | None = None,
    target_flops: str | int | float | None = None,
    target_kv_cache: str | int | float | None = None,
    target_latency: str | int | float | None = None,
    model: PreTrainedModel | None = None,
    batches: Iterable[Batch | Mapping[str, Tensor]] = (),
    multiple_of: int = 1,
    min_heads: int = 1,
    protect: Sequence[str] = (),
    uniform: bool = False,
    gqa: Literal["group", "even", "pad"] = "group",
    sites: Sequence[str] = (),
) -> PruningPlan:
    """Choose the heads to remove: the least important ones that the budget, the architecture and the constraints allow.

    One budget: a share of the heads, the most heads, or a target for the pruned model, as a share of the whole (``0.8``,
    ``"80%"``) or a number (``"20M"``, ``"12ms"``).

    Args:
        scores: The importance of every head.
        anatomy: Where the heads are.
        keep: Share of the heads that stay, rounded to the nearest number, in whole units.
        heads: The most heads that stay.
        target_parameters: The most parameters.
        target_flops: The most FLOPs per token with 512 tokens of context.
        target_kv_cache: The most bytes of key/value cache per token.
        target_latency: The most time of a forward of 32 rows of ``batches``: measured here, on the model.
        model: The model, for targets.
        batches: For ``target_latency``: data as :func:`score` takes it.
        multiple_of: Every layer keeps a multiple of so many heads (of key/value groups where these go as a whole).
        min_heads: Heads that stay in every layer.
        protect: Heads and layers that stay.
        uniform: The same number of heads in every layer.
        gqa: How heads go where several share keys and values.
        sites: Which attentions may lose heads (empty: all).

    Raises:
        PlanError: There is not one budget, or it is out of reach; the constraints contradict each other or the model.
    """
    target = _one_budget(
        keep,
        heads,
        parameters=target_parameters,
        flops=target_flops,
        kv_cache=target_kv_cache,
        latency=target_latency,
    )
    constraints = planning.Constraints(
        keep=1.0 if keep is None else keep,
        min_heads=min_heads,
        protect=tuple(protect),
        uniform=uniform,
        gqa=gqa,
        sites=tuple(sites),
        multiple_of=multiple_of,
        heads=heads,
        target=target,
    )
    prices = None
    if model is not None:
        given = batches_for(model, batches) if target_latency is not None and batches else ()
        prices = prices_of(model, anatomy, constraints=constraints, batches=lambda: given)
    return planning.make_plan(scores, anatomy, constraints=constraints, prices=prices)


def _one_budget(
    keep: float | None, heads: int | None, **targets: str | int | float | None
) -> planning.Target | None:
    """Return the target, None where the budget is one of heads."""
    said = {name: target for name, target in targets.items() if target is not None}
    if len(said) + (keep is not None) + (heads is not None) != 1:
        raise PlanError(
            "a plan has one budget",
            where="plan",
            hint="give one of keep, heads, " + ", ".join(f"target_{name}" for name in targets),
        )
    for resource in get_args(planning.Resource):
        if resource in said:
            return planning.Target.parse(resource, said[resource])
    return None


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
    anatomy = _anatomy(model, anatomy)
    source = model.config.name_or_path
    if isinstance(heads, PruningPlan):
        remove = select_heads(_planned(model, heads), anatomy.heads)
        pad = pad or planning.is_padded(heads)
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
    refuse_wrapped(model)
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
