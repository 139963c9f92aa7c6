"""Ideas that were tried and aren't what headprune does: other choices of heads, and training one sublayer at a time.

``train_sublayers`` finds them by a Llama's names.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from benchmarks.quality.subjects import Case
from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.distillation.unchanged import dead_weight_kept
from headprune.heads import HeadId
from headprune.masking import gated, real_positions
from headprune.plans import HeadScores
from headprune.surgery.fit import fit
from headprune.surgery.projections import write_weights

Unit: TypeAlias = tuple[int, ...]
_RIDGE = 0.01
"""In shares of the mean diagonal of a Gram matrix."""
_STEPS = 30
_ROWS = 8
_REFIT_EVERY = 10
_LOCAL_RATE = 3e-4
_GATE_RATE = 0.05


@torch.no_grad()
def osscar(case: Case, anatomy: Anatomy, scores: HeadScores, _count: int) -> HeadScores:
    """Return heads in the order in which OSSCAR removes them, the same number in every attention, without its swaps.

    Of an attention's heads that are left, the one goes whose ``tr(W_j^T (P_jj)^-1 W_j) / 2`` is least, ``P`` the inverse of the
    Gram matrix of what the output projection ``W`` reads; both are then brought up to date (Meng et al. 2024, arXiv:2403.12983).
    """
    model, values = case.session.model, dict[HeadId, float]()
    grams = _grams(model, anatomy, _batches(case, model))
    for site in anatomy.sites:
        weight, gram = _weight(model, site).T.double().cpu(), grams[site.id].cpu()
        columns = {unit: _columns(site, unit) for unit in _units(case, site)}
        size = float((weight * (gram @ weight)).sum()) / 2
        for place, (unit, cost) in enumerate(removal_order(_ridged(gram), weight, columns)):
            values |= {HeadId(site.id, head): place + cost / (cost + size) for head in unit}
    return _as_scores(scores, values, "osscar")


def removal_order(
    gram: Float64[Tensor, "width width"],
    weight: Float64[Tensor, "width outputs"],
    columns: Mapping[Unit, Tensor],
) -> list[tuple[Unit, float]]:
    """Return what goes first to last, each with what it adds to ``tr(D^T G D) / 2``, ``D`` the change of ``weight``."""
    inverse, left, order = torch.linalg.inv(gram), dict(columns), []
    while left:
        costs = {unit: _cost(weight, inverse, at) for unit, at in left.items()}
        unit = min(left, key=costs.__getitem__)
        at = left.pop(unit)
        both = torch.cat([weight[at], inverse[at]], dim=1)
        change = inverse[:, at] @ torch.linalg.solve(inverse[at][:, at], both)
        weight = weight - change[:, : weight.shape[1]]
        inverse = inverse - change[:, weight.shape[1] :]
        order.append((unit, costs[unit]))
    return order


def k_prune(case: Case, anatomy: Anatomy, scores: HeadScores, count: int) -> HeadScores:
    """Return 0 for the heads that K-prune removes, 1 for the others.

    From the first attention on: heads of this one and all later ones are scored by what they put out and by the squared
    derivative of the distance to the whole model, half and half; those of this one that are below the budget's threshold go, and
    its output projection is fitted to the whole model's residual stream (Park et al., ICLR 2024, arXiv:2308.03449). Where nothing
    is gone yet, that derivative is 0, and what heads put out decides alone.
    """
    whole, model = case.session.model, copy.deepcopy(case.session.model).requires_grad_(False)
    batches, gone = _batches(case, model), set[HeadId]()
    for index, site in enumerate(anatomy.sites):
        later = [unit for other in anatomy.sites[index:] for unit in _named_units(case, other)]
        worth = _knowledge(case, model, whole, anatomy, batches, gone)
        ranked = sorted(later, key=lambda unit: sum(worth[head] for head in unit))
        here = {HeadId(site.id, head) for head in site.heads}
        below = ranked[: (count - len(gone)) // len(ranked[0])]
        for unit in below:
            gone |= here & {*unit} if not here <= gone | {*unit} else set()
        if here & gone:
            mask = anatomy.mask(gone)
            (found,) = fit(whole, anatomy, batches=batches, mask=mask, methods=["refit"])
            own = f"{site.output}."
            write_weights(model, {k: v for k, v in found.weights.items() if k.startswith(own)})
    return _as_scores(scores, {head: float(head not in gone) for head in anatomy.heads}, "k-prune")


def budget_gates(case: Case, anatomy: Anatomy, scores: HeadScores, count: int) -> HeadScores:
    """Return what gates come to that are trained towards the whole model, on a refitted one, and hold the budget at every step.

    Forwards see the heads above the budget's threshold alone, backwards go straight through to ``sigmoid``; every few steps the
    output projections are refitted for the heads that are there (after GRASPrune, arXiv:2604.19398).
    """
    whole, model = case.session.model, copy.deepcopy(case.session.model).requires_grad_(False)
    units = [unit for site in anatomy.sites for unit in _named_units(case, site)]
    place = {head: index for index, unit in enumerate(units) for head in unit}
    unit_of = torch.tensor([place[head] for head in anatomy.heads])
    order = {head: rank for rank, head in enumerate(scores.ranked())}
    start = [sum(order[head] for head in unit) / len(unit) for unit in units]
    logits = (torch.tensor(start) / len(order) * 2 - 1).requires_grad_(True)
    kept = len(units) - count // len(units[0])
    optimizer, batches = AdamW([logits], lr=_GATE_RATE, weight_decay=0), _batches(case, model)
    for step, batch in enumerate(_training(case, model)):
        hard = torch.zeros_like(logits).index_fill(0, logits.topk(kept).indices, 1.0)
        if step % _REFIT_EVERY == 0:
            mask = hard[unit_of]
            (found,) = fit(whole, anatomy, batches=batches, mask=mask, methods=["refit"])
            write_weights(model, found.weights)
        soft = logits.sigmoid()
        with gated(model, anatomy, gates=(hard + soft - soft.detach())[unit_of].to(model.device)):
            outputs = forward(model, batch.inputs)
        _distance(case, outputs, whole, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    values = dict(zip(anatomy.heads, logits.detach()[unit_of].tolist(), strict=True))
    return _as_scores(scores, values, "gates that hold the budget")


def train_sublayers(case: Case, model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Train each attention and each feed-forward layer of a cut model in place, one after the other, to give the whole's stream.

    Inputs come from the layers before as they were trained, targets from the whole model; every position is divided by the
    mean square of its target (after arXiv:2510.14444). The cost is that of healing on the same rows.
    """
    rows: list[Any] = [batch.inputs["input_ids"] for batch in _training(case, model)]
    whole_body: Any = case.session.model.base_model
    body: Any = model.base_model
    with torch.no_grad():
        there = [whole_body.embed_tokens(one) for one in rows]
        here = [state.clone() for state in there]
        positions = torch.arange(rows[0].shape[1], device=model.device)[None]
        rotary = whole_body.rotary_emb(there[0], positions)
    with dead_weight_kept(model, anatomy):
        for old, new in zip(whole_body.layers, body.layers, strict=True):
            for attends in (True, False):
                with torch.no_grad():
                    there = [_sublayer(old, state, rotary, attends=attends) for state in there]
                parts = (
                    (new.input_layernorm, new.self_attn)
                    if attends
                    else (new.post_attention_layernorm, new.mlp)
                )
                weights = [one for part in parts for one in part.parameters() if one.numel()]
                _train(new, weights, here, there, rotary, attends=attends)
                with torch.no_grad():
                    here = [_sublayer(new, state, rotary, attends=attends) for state in here]


def _train(
    layer: Any,
    weights: Sequence[nn.Parameter],
    here: Sequence[Tensor],
    there: Sequence[Tensor],
    rotary: Any,
    *,
    attends: bool,
) -> None:
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = AdamW(weights, lr=_LOCAL_RATE, betas=(0.8, 0.95), weight_decay=0)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 3, 1 - step / len(here)))
    for state, target in zip(here, there, strict=True):
        error = (_sublayer(layer, state, rotary, attends=attends) - target).square().mean(-1)
        (error / target.square().mean(-1)).mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _sublayer(layer: Any, state: Tensor, rotary: Any, *, attends: bool) -> Tensor:
    if not attends:
        fed: Tensor = layer.mlp(layer.post_attention_layernorm(state))
        return state + fed
    normed = layer.input_layernorm(state)
    attended: Tensor = layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
    return state + attended


def _training(case: Case, model: PreTrainedModel) -> Iterator[Batch]:
    rows = case.parts.train.examples[: _STEPS * _ROWS]
    for batch in case.session.batches(rows, batch_size=_ROWS):
        yield batch.to(model.device)


def _batches(case: Case, model: PreTrainedModel) -> list[Batch]:
    return [batch.to(model.device) for batch in case.session.batches(case.parts.calibrate.examples)]


def _distance(case: Case, outputs: Any, whole: PreTrainedModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        targets = forward(whole, batch.inputs).logits
    found: Tensor = case.session.task.distillation.distance(outputs.logits, targets, batch.inputs)
    return found.mean()


def _units(case: Case, site: Site) -> list[Unit]:
    """Return what goes together: a key/value group, or a head."""
    if case.session.settings.plan.gqa == "group":
        return list(site.groups(site.heads).values())
    return [(head,) for head in site.heads]


def _named_units(case: Case, site: Site) -> list[tuple[HeadId, ...]]:
    return [tuple(HeadId(site.id, head) for head in unit) for unit in _units(case, site)]


def _columns(site: Site, unit: Iterable[int]) -> Tensor:
    starts = torch.tensor(list(unit)) * site.head_dim
    return (starts[:, None] + torch.arange(site.head_dim)).flatten()


def _weight(model: PreTrainedModel, site: Site) -> Tensor:
    return model.get_parameter(f"{site.output}.weight").detach()


def _ridged(gram: Tensor) -> Tensor:
    return gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)


def _cost(weight: Tensor, inverse: Tensor, at: Tensor) -> float:
    inner = torch.linalg.solve(inverse[at][:, at], weight[at])
    return float((weight[at] * inner).sum()) / 2


def _as_scores(scores: HeadScores, values: dict[HeadId, float], method: str) -> HeadScores:
    listed = tuple(values[head] for head in scores.heads)
    none = {"standard_errors": None, "steps": None, "products": None, "one_head": ()}
    return scores.model_copy(update={"method": method, "values": listed, **none})


@contextmanager
def _reading(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[dict[str, Tensor]]:
    """Let forwards note what each output projection reads, by the attention's path, before any gate."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in anatomy.sites:

            def note(_module: Any, args: Any, name: str = site.path) -> None:
                seen[name] = args[0].detach()

            projection = model.get_submodule(site.output)
            stack.callback(projection.register_forward_pre_hook(note).remove)
        yield seen


def _grams(
    model: PreTrainedModel, anatomy: Anatomy, batches: Sequence[Batch]
) -> dict[Any, Float64[Tensor, "width width"]]:
    found: dict[Any, Any] = {site.id: 0.0 for site in anatomy.sites}
    with _reading(model, anatomy) as seen:
        for batch in batches:
            forward(model, batch.inputs)
            for site in anatomy.sites:
                z, real = (
                    seen[site.path],
                    real_positions(site, seen[site.path].shape[:-1], batch),
                )
                z = (z if real is None else z[real.to(z.device)]).flatten(0, -2).double()
                found[site.id] = found[site.id] + z.T @ z
    return found


def _knowledge(
    case: Case,
    model: PreTrainedModel,
    whole: PreTrainedModel,
    anatomy: Anatomy,
    batches: Sequence[Batch],
    gone: set[HeadId],
) -> dict[HeadId, float]:
    mask = anatomy.mask(gone).to(model.device)
    said, slope = torch.zeros(len(mask)).double(), torch.zeros(len(mask)).double()
    for batch in (part for one in batches for part in one.halves() or (one,)):
        gates = mask.expand(batch.num_rows, -1).clone().requires_grad_(True)
        with _reading(model, anatomy) as seen, gated(model, anatomy, gates=gates):
            outputs = forward(model, batch.inputs)
        (_distance(case, outputs, whole, batch) * batch.num_rows).backward()
        assert gates.grad is not None
        slope += gates.grad.double().square().sum(0).cpu()
        for site in anatomy.sites:
            weight = _weight(model, site).T
            for head, column in zip(
                site.heads, range(len(mask))[anatomy.columns[site.id]], strict=True
            ):
                at = _columns(site, [head]).to(weight.device)
                put_out = seen[site.path].flatten(0, -2)[:, at] @ weight[at]
                said[column] += float(put_out.double().square().sum())
    worth = said / said.sum() + (slope / slope.sum() if gone else 0)
    return dict(zip(anatomy.heads, worth.tolist(), strict=True))
