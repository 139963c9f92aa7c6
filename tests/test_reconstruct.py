"""Reconstruction: the least squares that it says it solves, and only where it helps."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build, inspected, token_inputs
from test_methods import unpadded
from test_refit import with_a_skip
from test_scoring import setting
from test_sweep import QUIET, subject_on_disk
from torch import nn

import headprune as hp
from headprune.batch import as_batches
from headprune.evaluation import Predictions, predict
from headprune.masking import gated
from headprune.replay.losses import losses
from headprune.replay.record import tensors_in
from headprune.replay.resume import (
    advance_through,
    block_or_attention,
    read_last_only,
    without_values,
)
from headprune.surgery.fit import fit
from headprune.surgery.least_squares import FOLDS, Sums, no_sums, solve
from headprune.surgery.projections import projection_weights, write_weights
from headprune.surgery.reconstruct import RECONSTRUCT_METHODS, HeldOut, Measured, reconstruct
from headprune.tasks.metrics import spearman
from headprune.workflows.reconstruct import HeldOutRows, best_of
from headprune.workflows.rows import separate_rows
from headprune.workflows.session import open_session


def refit(model, anatomy, *, batches, mask, ridge):
    (found,) = fit(model, anatomy, batches=batches, mask=mask, methods=["refit"], ridges=[ridge])
    write_weights(model, found.weights)


def least_loss(looks):
    return min(range(len(looks)), key=lambda place: looks[place].loss)


GONE = {
    "bert": ["L0.H1", "L1.H0", "L1.H3", "L2.H5"],
    "gpt2": ["L1.H0", "L1.H3", "L2.H5"],
    "llama": ["L0.H1", "L0.H0", "L2.H5", "L2.H4"],
}


def mask_of(anatomy, gone):
    removed = [head for head in anatomy.heads if str(head) in gone]
    return anatomy.mask(removed)


def test_of_two_equal_heads_one_does_the_work_of_both():
    model, batch, _loss = setting("bert", rows=32)
    attention = model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value):
            linear.weight[8:16] = linear.weight[:8]
            linear.bias[8:16] = linear.bias[:8]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        expected = model(**inputs).logits
    anatomy = inspected(model)
    mask = mask_of(anatomy, ["L0.H1"])
    with torch.no_grad(), hp.masked(model, ["L0.H1"]):
        cut = (model(**inputs).logits - expected).abs().max()
    refit(model, anatomy, batches=as_batches([batch]), mask=mask, ridge=1e-9)
    with torch.no_grad():
        hp.prune(model, ["L0.H1"])
        reconstructed = (model(**inputs).logits - expected).abs().max()
    assert reconstructed < cut / 1000


def test_padding_is_not_fitted():
    model, batch, _loss = setting("bert", rows=12)
    other = copy.deepcopy(model)
    anatomy = inspected(model)
    mask = mask_of(anatomy, GONE["bert"])
    refit(model, anatomy, batches=as_batches([batch]), mask=mask, ridge=1e-2)
    refit(other, anatomy, batches=as_batches(list(unpadded(batch))), mask=mask, ridge=1e-2)
    found = [projection_weights(m, anatomy) for m in (model, other)]
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-4), name


def likeness(model, batch, *, sign):
    """Return a loss that is small (or, with the other sign, large) where outputs are those of the whole model."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        wanted = model(**inputs).logits
    return lambda outputs, b: sign * (outputs.logits - wanted[b.targets]).square().sum(1)


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_kept_only_where_rows_that_it_did_not_see_say_so(sign):
    model = build("bert")
    batch = {**token_inputs(rows=48), "labels": torch.arange(48)}
    loss = likeness(model, batch, sign=sign)
    parts = [
        {name: value[rows] for name, value in batch.items()}
        for rows in (slice(0, 32), slice(32, 48))
    ]
    fitting, held_out = (as_batches([part]) for part in parts)
    anatomy = inspected(model)
    before = projection_weights(model, anatomy)
    remove = [head for head in anatomy.heads if str(head) in GONE["bert"]]

    def mean_loss(mask):
        with gated(model, anatomy, gates=mask):
            ones = torch.ones(1, len(mask))
            found = losses(model, anatomy, batches=held_out, loss=loss, masks=ones)
        mean = found.double().mean().item()
        return Measured(mean, mean)

    judge = HeldOut(mean_loss, least_loss, "loss", examples=16)
    found = reconstruct(model, anatomy, batches=fitting, held_out=judge, remove=remove)
    assert (found.fitted_on, found.held_out) == (32, 16)
    after = projection_weights(model, anatomy)
    same = all(torch.equal(value, after[name]) for name, value in before.items())
    if sign == 1:
        assert (
            found.kept.value
            == min(tried.value for tried in found.tried)
            < found.without_reconstruction
        )
        assert not same
        with torch.no_grad(), hp.masked(model, GONE["bert"]):
            inputs = {n: v for n, v in parts[1].items() if n != "labels"}
            now = loss(model(**inputs), held_out[0]).mean().item()
        assert now == pytest.approx(found.kept.value, rel=1e-5)
    else:
        assert found.kept is None
        assert same


def test_nothing_removed_is_nothing_reconstructed():
    model, batch, _loss = setting("llama")
    anatomy = inspected(model)
    before = projection_weights(model, anatomy)
    refit(model, anatomy, batches=as_batches([batch]), mask=torch.ones(24), ridge=1e-2)
    after = projection_weights(model, anatomy)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("bias", [True, False])
def test_scales_and_biases_solve_what_they_say(bias):
    """By columns that are whole outputs of a head, one unknown each, and a solver by QR."""
    heads, width, outputs, positions = 4, 3, 5, 60
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(positions, heads * width, generator=generator, dtype=torch.float64)
    weight = torch.randn(heads * width, outputs, generator=generator, dtype=torch.float64)
    wanted = torch.randn(positions, outputs, generator=generator, dtype=torch.float64) + 2
    start = torch.randn(outputs, generator=generator, dtype=torch.float64) if bias else None
    sums = no_sums(heads * width, outputs, device=z.device)
    for part, target in zip(z.split(7), wanted.split(7), strict=True):
        sums = sums.plus(part, target)
    ridge = 0.3
    folds = [sums, no_sums(heads * width, outputs, device=z.device)]
    scaled = solve(folds, weight, start, method="scale", ridges=[ridge], head_dim=width)
    each = torch.stack(
        [
            (z[:, width * h : width * h + width] @ weight[width * h : width * h + width]).flatten()
            for h in range(heads)
        ],
        dim=1,
    )
    pull = (ridge * each.square().sum(0).mean()) ** 0.5
    rows = torch.cat([each, pull * torch.eye(heads, dtype=torch.float64)])
    left = (wanted - (start if bias else 0)).flatten()[:, None]
    ones = pull * torch.ones(heads, 1, dtype=torch.float64)
    factors = torch.linalg.lstsq(rows, torch.cat([left, ones])).solution[:, 0]
    assert torch.allclose(scaled.weight, weight * factors.repeat_interleave(width)[:, None])
    assert scaled.bias is start
    moved = solve(folds, weight, start, method="bias", head_dim=width)
    assert torch.equal(moved.weight, weight)
    if bias:
        assert torch.allclose(moved.bias, (wanted - z @ weight).mean(0))
    else:
        assert moved.bias is None


@pytest.mark.parametrize("how", ["refit", "scale"])
@pytest.mark.parametrize(("bias", "noise"), [(True, 0.1), (True, 9.0), (False, 1.0), (False, 30.0)])
def test_the_ridge_is_the_one_that_cross_validation_by_hand_takes(how, bias, noise):
    """Fold by fold from the rows themselves: solve on the others, look at the errors on this one."""
    heads, width, outputs, positions = 3, 2, 4, 40
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(positions, heads * width, generator=generator, dtype=torch.float64)
    weight = torch.randn(heads * width, outputs, generator=generator, dtype=torch.float64)
    start = torch.randn(outputs, generator=generator, dtype=torch.float64) if bias else None
    truth = weight + 0.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    wanted = z @ truth + (start if bias else 0)
    wanted += noise * torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    none = no_sums(heads * width, outputs, device=z.device)
    fold = torch.arange(positions) % FOLDS
    folds = [none.plus(z[fold == place], wanted[fold == place]) for place in range(FOLDS)]
    ridges = (0.01, 0.1, 1.0, 10.0)
    settings = {"method": how, "head_dim": width}
    errors = []
    for ridge in ridges:
        left = 0.0
        for place in range(FOLDS):
            others = none.plus(z[fold != place], wanted[fold != place])
            found = solve([others], weight, start, ridges=[ridge], **settings)
            mine = z[fold == place] @ found.weight + (found.bias if bias else 0)
            left += (mine - wanted[fold == place]).square().sum().item()
        errors.append(left)
    best = ridges[errors.index(min(errors))]
    found = solve([*folds, none], weight, start, ridges=ridges, **settings)
    assert found.ridge == best
    every = solve([none.plus(z, wanted)], weight, start, ridges=[best], **settings)
    assert torch.allclose(found.weight, every.weight)


def test_a_choice_that_has_seen_the_rows_it_is_judged_on_is_another(monkeypatch):
    """The held-out choice, broken on purpose: of mere noise it takes the weakest ridge instead of the strongest."""
    z, noise = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0)).double()
    none = no_sums(12, 12, device=z.device)
    folds = [none.plus(z[place::FOLDS], noise[place::FOLDS]) for place in range(FOLDS)]
    settings = {"method": "refit", "head_dim": 2, "ridges": (0.01, 0.1, 1.0, 10.0)}
    start = torch.zeros(12, 12).double()
    assert solve(folds, start, None, **settings).ridge == 10.0
    monkeypatch.setattr(Sums, "__sub__", lambda every, _part: every)
    assert solve(folds, start, None, **settings).ridge == 0.01


def test_what_overflows_chooses_no_weak_ridge():
    z, wanted = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    none = no_sums(4, 4, device=z.device)
    folds = [none.plus(z, wanted), none.plus(z, wanted * 1e308 * 1e308)]
    found = solve(folds, torch.eye(4).double(), None, method="refit", head_dim=2)
    assert found.ridge == 3.0


def test_of_one_example_little_is_learned():
    z, wanted = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.eye(4).double()
    sums = no_sums(4, 4, device=z.device).plus(z, wanted)
    found = solve([sums], weight, None, method="refit", head_dim=2, ridges=(0.1, 3.0, 1.0))
    assert found.ridge == 3.0


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_reconstruction_does_not_depend_on_batch_size(name):
    model, batch, _loss = setting(name, rows=24)
    anatomy = inspected(model)
    mask = mask_of(anatomy, GONE[name])
    found = [
        fit(
            model,
            anatomy,
            batches=as_batches(
                [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, 24, size)]
            ),
            mask=mask,
            methods=["refit"],
        )[0]
        for size in (24, 9, 5)
    ]
    assert len(set(found[0].ridges.values())) > 1  # projections differ in what suits them
    for other in found[1:]:
        assert other.ridges == found[0].ridges
        for name, value in other.weights.items():
            assert torch.allclose(value, found[0].weights[name], atol=1e-4)


def test_only_what_has_a_bias_is_reconstructed_by_it():
    model, batch, _loss = setting("llama", rows=12)
    anatomy = inspected(model)
    remove = [head for head in anatomy.heads if str(head) in GONE["llama"]]
    judge = HeldOut(lambda _mask: Measured(0.0, 0.0), least_loss, "loss", examples=12)
    batches = as_batches([batch])
    found = reconstruct(
        model,
        anatomy,
        batches=batches,
        held_out=judge,
        remove=remove,
        methods=RECONSTRUCT_METHODS["bias"],
    )
    assert found.tried == ()
    assert found.kept is None


@pytest.mark.parametrize("to_stream", [True, False])
@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "qwen3"])
def test_a_walk_runs_every_attention_once(name, to_stream):
    """On all rows, for the whole model and for each way; what is asked of the model besides is asked on a few rows."""
    model, batch, _loss = setting(name, rows=24)
    anatomy = inspected(model)
    ways = ["refit", "scale"]
    rows, projected = [], []
    handles = []
    for site in anatomy.sites:
        inside = model.get_submodule(site.path).modules()
        for part, seen in (
            (next(one for one in inside if isinstance(one, nn.Linear)), rows),
            (model.get_submodule(site.output), projected),
        ):

            def note(_module, args, seen=seen):
                seen.append(len(args[0]))

            handles.append(part.register_forward_pre_hook(note))
    masks = mask_of(anatomy, [str(anatomy.heads[0])])
    fit(model, anatomy, batches=as_batches([batch]), mask=masks, methods=ways, to_stream=to_stream)
    for handle in handles:
        handle.remove()
    assert rows.count(24) == len(anatomy.sites) * (1 + len(ways))
    # Read once, and run once with its new weights.
    assert projected.count(24) <= 2 * len(anatomy.sites) * (1 + len(ways))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_an_attention_may_lose_all_its_heads(name):
    model, batch, _loss = setting(name, rows=12)
    anatomy = inspected(model)
    site = anatomy.sites[1]
    masks = anatomy.mask(anatomy.heads[anatomy.columns[site.id]])
    (found,) = fit(model, anatomy, batches=as_batches([batch]), mask=masks, methods=["refit"])
    weight = f"{site.output}.weight"
    assert torch.equal(found.weights[weight], model.get_parameter(weight))
    assert all(bool(value.isfinite().all()) for value in found.weights.values())
    assert found.weights.keys() == projection_weights(model, anatomy).keys()


def looked(predictions, references, loss):
    return Measured(
        0.0, loss, Predictions(predictions, references, losses=np.zeros(len(references)))
    )


def spread_of(seed, noise, count=400):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=count)
    return truth, truth + noise * rng.normal(size=count)


def test_the_loss_decides_where_the_metric_sees_no_difference():
    truth, found = spread_of(0, 0.5)
    looks = [looked(found, truth, 0.3), looked(found, truth, 0.1), looked(found, truth, 0.2)]
    assert best_of(looks, spearman, seed=0) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_metric_that_is_clearly_better_outvotes_the_loss(sign):
    """The scale of predictions changes their loss and not their ranks."""
    truth, good = spread_of(0, 0.1)
    _truth, poor = spread_of(0, 2.0)
    looks = [looked(sign * poor, truth, 0.1), looked(sign * good, truth, 9.0)]
    assert best_of(looks, lambda one, other: sign * spearman(one, other), seed=0) == 1
    assert best_of(looks[::-1], lambda one, other: sign * spearman(one, other), seed=0) == 0


def test_what_is_no_number_never_wins():
    truth, found = spread_of(0, 0.5)
    constant = np.zeros_like(found)
    looks = [looked(found, truth, 0.2), looked(constant, truth, math.nan)]
    assert best_of(looks, spearman, seed=0) == 0
    assert (
        best_of([looked(constant, truth, 0.2), looked(constant, truth, 0.3)], spearman, seed=0) == 0
    )


def come_to_the_third(model, batch):
    anatomy = inspected(model)
    completed = ()
    for site in anatomy.sites[:2]:
        completed = advance_through(
            model, anatomy, batch, completed=completed, through=block_or_attention(model, site)
        )
    return anatomy, completed


@pytest.mark.parametrize("skips", [False, True])
def test_a_walk_keeps_no_more_than_the_model_reads(skips):
    model, batch, _loss = setting("bert", rows=8)
    (given,) = as_batches([batch])
    model.eval()
    with torch.no_grad():
        anatomy, completed = come_to_the_third(with_a_skip(model) if skips else model, given)
    layers = model.bert.encoder.layer
    found = read_last_only(model, anatomy, given.take(1), order=anatomy.sites)
    assert (layers[1] in found) is not skips
    assert set(found.values()) <= {layers}
    sizes = {
        list(layers).index(call.module): sum(
            tensor.untyped_storage().nbytes() for tensor in tensors_in(call.output)
        )
        for call in without_values(completed, layers)
        if call.module in set(layers)
    }
    assert sizes[0] == 4
    assert sizes[1] >= 4 * 8 * model.config.hidden_size


@pytest.mark.parametrize("by_loss", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_held_out_rows_look_at_the_model_without_the_removed_heads(
    name, by_loss, run_here, tokenizer
):
    session = open_session(subject_on_disk(name, tokenizer), progress=QUIET)
    anatomy, parts = session.anatomy, separate_rows(session)
    mask = mask_of(anatomy, GONE[name])
    rows = HeldOutRows(session.model, anatomy, session.objective(parts.held_out))
    if not by_loss:
        rows = replace(rows, task=session.task, metric=session.metric)
    measure = rows.judge().measure
    found, whole = measure(mask), measure(torch.ones_like(mask))
    with hp.masked(session.model, GONE[name], anatomy=anatomy):
        batches = session.batches(parts.held_out)
        expected = predict(session.model, session.task, batches=batches)
    assert found.loss == pytest.approx(expected.losses.mean(), rel=1e-5)
    assert whole.loss != pytest.approx(found.loss, rel=1e-4)
    value = session.metric.compute(expected.predictions, expected.references)
    assert found.value == pytest.approx(expected.losses.mean() if by_loss else value, rel=1e-5)
