"""The contract that every model type is held to, as one function from a name to a verdict."""

import copy
import math
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import zoo
from families import written

import headprune as hp
from headprune.anatomy.clone import quiet
from headprune.anatomy.trace import looks_like_attention
from headprune.errors import HeadpruneError, ModelError, UnsupportedError
from headprune.models.classes import auto_classes

TOLERANCE = 2e-5
# Convolutions choose their kernel by how memory is aligned, so the same numbers may give other last bits.
KERNELS = 1e-6
PLANS = {"eager": (0, 1, 2), "sdpa": (0, 1, 2)}
LEAST_EFFECT = 1e-3


class BrokenLawError(AssertionError):
    """A model was cut, and is not what it was said to be."""


class ProvesNothingError(Exception):
    """The tiny model puts out the same whatever its heads do."""


@dataclass(frozen=True)
class Verdict:
    """What became of a model type.

    Args:
        name: The model type, or a variant of one.
        state: ``exact``, ``partly`` (some of its attentions are left whole), ``refused``, ``no attention``, ``not built``.
        reason: Why not, or why only in part.
        kinds: How many attentions of each kind.
        executions: How they run once cut.
        route: How the pruned model loads.
        worst: Largest difference of masked and pruned outputs, relative to their scale.
        checked: What was looked at besides.
    """

    name: str
    state: str
    reason: str = ""
    kinds: dict = field(default_factory=dict)
    executions: tuple = ()
    route: str = ""
    worst: float = 0.0
    checked: tuple = ()

    @property
    def found(self):
        """Whether the heads were found."""
        return self.state in ("exact", "partly")


def examine(name):
    """Hold a model type to the contract; raises BrokenLawError where a law is broken."""
    try:
        with quiet():
            model = zoo.build(name)
            inputs = zoo.inputs(model)
            outputs(model, inputs)
    except zoo.NotBuilt as error:
        return Verdict(name, "not built", str(error))
    except Exception as error:  # noqa: BLE001 - the tiny model is ours, and so is the mistake
        return Verdict(name, "not built", f"the tiny model doesn't run: {_line(error)}")
    if not any(looks_like_attention(module) for module in model.modules()):
        return Verdict(name, "no attention")
    try:
        anatomy = hp.inspect(model)
    except UnsupportedError as error:
        return Verdict(
            name, "refused", error.what.partition(" is not supported")[2].removeprefix(":").strip()
        )
    try:
        return _examined(name, model, inputs, anatomy)
    except HeadpruneError as error:  # said no later on: loud, and not what was promised
        return Verdict(name, "refused", f"once looked at more closely: {error.what}")
    except ProvesNothingError as error:
        return Verdict(name, "not built", str(error))


def _examined(name, model, inputs, anatomy):
    checked = []
    worst = 0.0
    for attention in PLANS:
        try:
            subject = zoo.build(name, attention=attention)
        except zoo.NotBuilt:
            continue
        worst = max(worst, _masked_is_pruned(subject, inputs, anatomy, seeds=PLANS[attention]))
        checked.append(attention)
    if _rows_are_masked_one_by_one(model, inputs, anatomy):
        checked.append("rows")
    route = _reload_is_identical(model, inputs, anatomy)
    generated = _generation_agrees(name)
    if generated:
        checked.append(generated)
    reasons = sorted(set(anatomy.refused.values()))
    return Verdict(
        name,
        "partly" if reasons else "exact",
        "; ".join(reasons),
        kinds=_count(f"{site.id.stack}.{site.id.kind}".lstrip(".") for site in anatomy.sites),
        executions=tuple(sorted({site.execution for site in anatomy.sites})),
        route=route,
        worst=worst,
        checked=tuple(checked),
    )


def random_plan(anatomy, seed, *, ragged=False):
    """Return heads to remove, different in every attention.

    Three kinds of loss take turns over attentions and seeds: evenly from each key/value group, whole groups, everything (where
    that can be). ``ragged``: one head of the first group and any of the others, so that groups are uneven.
    """
    rng = random.Random(seed)
    removed = []
    for place, site in enumerate(anatomy.sites):
        groups = list(site.groups(site.heads).values())
        grouped = site.group_size > 1 and site.execution == "native"
        kind = (place + seed) % 3
        if ragged and grouped and len(groups) > 1:
            gone = {
                groups[0][0],
                *rng.sample(groups[1], rng.choice([0, *range(2, site.group_size)])),
            }
        elif kind == 2 and site.min_heads == 0:
            gone = set(site.heads)
        elif grouped:
            gone = _lawful(rng, groups, site.group_size, evenly=kind != 1)
        else:
            gone = set(rng.sample(site.heads, rng.randrange(1, max(2, len(site.heads)))))
        if len(site.heads) - len(gone) < site.min_heads:
            gone = set()
        removed += [f"{site.id}.H{head}" for head in sorted(gone)]
    return removed


def _lawful(rng, groups, size, *, evenly):
    if evenly or len(groups) == 1:
        each = rng.randrange(1, size)
        return {head for group in groups for head in rng.sample(group, each)}
    return {head for group in rng.sample(groups, rng.randrange(1, len(groups))) for head in group}


def outputs(model, inputs):
    """Return every tensor of floats that a model puts out. Models that draw random numbers draw the same each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(0)
        return list(_tensors(model(**inputs)))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def distance(ones, others):
    """Return the largest difference, relative to the scale of what differs (or 1)."""
    if [x.shape for x in ones] != [x.shape for x in others]:
        return math.inf  # a predicted length may hang on the last bit
    worst = 0.0
    for one, other in zip(ones, others, strict=True):
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return math.inf
        if finite.any():
            scale = max(1.0, float(one[finite].abs().max()))
            worst = max(worst, float((one - other)[finite].abs().max()) / scale)
    return worst


def _masked_is_pruned(model, inputs, anatomy, *, seeds):
    plain = outputs(model, inputs)
    worst = moved = 0.0
    ragged = any(site.group_size > 1 and site.execution == "native" for site in anatomy.sites)
    for seed, pad in [*((seed, False) for seed in seeds), *([(3, True)] if ragged else [])]:
        removed = random_plan(anatomy, seed, ragged=pad)
        pruned = copy.deepcopy(model)
        with hp.masked(pruned, removed, anatomy=anatomy):
            masked = outputs(pruned, inputs)
        hp.prune(pruned, removed, anatomy=anatomy, pad=pad)
        difference = distance(masked, outputs(pruned, inputs))
        if difference > TOLERANCE and not _is_rounding(model, inputs, anatomy, removed, pad=pad):
            raise BrokenLawError(f"masked and pruned differ by {difference:.1e} without {removed}")
        worst, moved = max(worst, difference), max(moved, distance(plain, masked))
    if moved < LEAST_EFFECT:
        raise ProvesNothingError("masking moves nothing in it, so equality proves nothing")
    return worst


def _is_rounding(model, inputs, anatomy, removed, *, pad):
    """Whether a difference goes away with twice the precision."""
    model = copy.deepcopy(model).double()
    doubled = _doubled(inputs)
    with hp.masked(model, removed, anatomy=anatomy):
        masked = outputs(model, doubled)
    hp.prune(model, removed, anatomy=anatomy, pad=pad)
    return distance(masked, outputs(model, doubled)) <= TOLERANCE / 1000


def _rows_are_masked_one_by_one(model, inputs, anatomy):
    """Gates may differ from row to row: each row's outputs are those of a forward with its gates alone."""
    rows = next(x.shape[0] for x in inputs.values() if isinstance(x, torch.Tensor) and x.dim() > 1)
    generator = torch.Generator().manual_seed(1)
    gates = {
        str(site.id): torch.randint(0, 2, (rows, len(site.heads)), generator=generator).float()
        for site in anatomy.sites
    }
    plain = outputs(model, inputs)
    try:
        with hp.masked(model, gates, anatomy=anatomy):
            together = outputs(model, inputs)
    except (
        IndexError,
        ModelError,
        RuntimeError,
    ):  # the model packs its rows into one, or has other rows than its inputs
        return False
    compared = 0
    for row in range(rows):
        same = {name: gate[row : row + 1].expand(rows, -1) for name, gate in gates.items()}
        with hp.masked(model, same, anatomy=anatomy):
            alone = outputs(model, inputs)
        # A length that the model predicts for the longest row may be another: such outputs have no rows to compare.
        own = [
            i
            for i in _of_one_row(model, inputs, plain, row, rows)
            if together[i].shape == alone[i].shape
        ]
        compared += len(own)
        difference = distance([together[i][row] for i in own], [alone[i][row] for i in own])
        if difference > TOLERANCE:
            raise BrokenLawError(f"row {row} is masked otherwise beside others: {difference:.1e}")
    return compared > 0


def _of_one_row(model, inputs, plain, row, rows):
    """Return which outputs have rows that depend on their own input alone (contrastive logits don't)."""
    alike = {
        name: x[row : row + 1].expand(x.shape).clone()
        if isinstance(x, torch.Tensor) and x.shape[:1] == (rows,)
        else x
        for name, x in inputs.items()
    }
    try:
        others = outputs(model, alike)
    except Exception:  # noqa: BLE001 - inputs whose rows belong together
        return []
    if [x.shape for x in others] != [x.shape for x in plain]:
        return []
    return [
        i
        for i, (one, other) in enumerate(zip(plain, others, strict=True))
        if one.shape[:1] == (rows,)
        and torch.allclose(one[row], other[row], atol=1e-4, equal_nan=True)
    ]


def _reload_is_identical(model, inputs, anatomy):
    """Save a pruned model and load it by the route that was announced, and with headprune."""
    pruned = copy.deepcopy(model)
    hp.prune(pruned, random_plan(anatomy, 2), anatomy=anatomy)
    expected = outputs(pruned, inputs)
    with tempfile.TemporaryDirectory() as folder, quiet():
        directory = Path(folder) / "saved"
        route = written(pruned, directory)
        loaded = [hp.load(directory, device="cpu", attn_implementation="eager")]
        auto = next(
            (n for n, made in auto_classes(type(model.config)).items() if made is type(model)), None
        )
        if auto is not None:
            loaded.append(
                getattr(transformers, auto).from_pretrained(
                    directory,
                    trust_remote_code=route == "remote-code",
                    attn_implementation="eager",
                )
            )
        for again in loaded:
            _same_numbers(pruned, again, also=lambda: _changed_by_loading(model))
            difference = distance(expected, outputs(again.eval(), inputs))
            if difference > KERNELS and not _is_the_same_in_double(pruned, again, inputs):
                raise BrokenLawError(
                    f"{type(again).__name__} loads as another model: {difference:.1e}"
                )
    return route


def _is_the_same_in_double(model, again, inputs):
    """Whether two models agree to more digits than single precision has: then only rounding told them apart."""
    model, again = copy.deepcopy(model).double(), copy.deepcopy(again).double()
    doubled = _doubled(inputs)
    return distance(outputs(model, doubled), outputs(again, doubled)) <= KERNELS / 1000


def _doubled(inputs):
    return {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }


def _same_numbers(model, again, *, also):
    """Every parameter and buffer, those that aren't saved too, is bit for bit what it was.

    What plain transformers changes when it loads the unpruned model (some zero an embedding of padding), it changes ``also``
    here.
    """
    loaded = {**dict(again.named_parameters()), **dict(again.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        same = name in loaded and torch.equal(tensor, loaded[name])
        if not same and name not in also():
            raise BrokenLawError(f"{name} isn't what was saved")


def _changed_by_loading(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder)
    loaded = {**dict(again.named_parameters()), **dict(again.named_buffers())}
    return {
        name
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not torch.equal(tensor, loaded[name])
    }


def _generation_agrees(name):
    """Greedy tokens with a cache are those of the masked model without one."""
    for auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        try:
            model = zoo.build(name, auto=auto)
        except zoo.NotBuilt:
            continue
        if model.can_generate():
            return _generates(model)
    return ""


def _generates(model):
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.randint(20, 60, (1, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), quiet():
        try:
            model.generate(ids, **settings, use_cache=True)
        except Exception:  # noqa: BLE001 - it needs more than tokens, pruned or not
            return ""
        anatomy = hp.inspect(model)
        for seed in (2, 3):  # in one of them the first layer of the decoder loses all its heads
            pruned = copy.deepcopy(model)
            removed = random_plan(anatomy, seed)
            with hp.masked(pruned, removed, anatomy=anatomy):
                masked = pruned.generate(ids, **settings, use_cache=True)
            hp.prune(pruned, removed, anatomy=anatomy)
            if not torch.equal(pruned.generate(ids, **settings, use_cache=True), masked):
                raise BrokenLawError("the pruned model generates other tokens than the masked one")
    return "generate"


def _count(names):
    found = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
