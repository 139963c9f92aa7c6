"""Importance without labels, and importance for the metric itself."""

import numpy as np
import pytest
import torch
from families import build, inspected, score, token_inputs
from test_methods import unpadded
from test_scoring import lm_batch, lm_loss, setting

import headprune as hp
from headprune.batch import as_batches
from headprune.masking import gated
from headprune.replay.losses import losses
from headprune.scoring.request import ScoreRequest
from headprune.scoring.request import score as run_method
from headprune.tasks.distill import predictions_as_loss, with_teacher_targets
from headprune.tasks.load_metric import load_metric
from headprune.tasks.task import get_task


def parts_of(batch, size):
    rows = len(batch["input_ids"])
    cut = [
        {name: value[start : start + size] for name, value in batch.items()}
        for start in range(0, rows, size)
    ]
    return as_batches([{n: v for n, v in part.items() if n != "labels"} for part in cut])


def case(task, rows=12):
    """Return a model that is sure of nothing, and a batch."""
    name = "llama" if task == "causal-lm" else "bert"
    model, batch = build(name), lm_batch(rows=rows) if name == "llama" else token_inputs(rows=rows)
    with torch.no_grad():
        (model.lm_head if name == "llama" else model.classifier).weight.mul_(
            0.02 if name == "bert" else 0.2
        )
    return model, batch


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_targets_do_not_depend_on_how_rows_are_batched(task):
    model, batch = case(task)
    goals = [
        with_teacher_targets(model, get_task(task).distillation, parts_of(batch, size), seed=3)
        for size in (12, 5)
    ]
    for kind in ("batches", "sampled_batches"):
        one, other = (torch.cat([part.targets for part in getattr(goal, kind)]) for goal in goals)
        assert torch.allclose(one.double(), other.double(), atol=1e-6)
    again = with_teacher_targets(model, get_task(task).distillation, parts_of(batch, 12), seed=4)
    assert not torch.equal(goals[0].sampled_batches[0].targets, again.sampled_batches[0].targets)


def test_nothing_is_lost_by_the_model_as_it_is_and_something_without_heads():
    model, batch = case("classification")
    goal = with_teacher_targets(
        model, get_task("classification").distillation, parts_of(batch, 5), seed=0
    )
    anatomy = inspected(model)
    masks = torch.stack([torch.ones(18), torch.tensor([0.0] * 3 + [1.0] * 15)])
    found = losses(model, anatomy, batches=goal.batches, loss=goal.loss, masks=masks)
    assert found[0].abs().max() < 1e-6
    assert found[1].mean() > 1e-5
    with torch.no_grad():
        whole = model(**batch).logits.double().log_softmax(-1)
        with hp.masked(model, ["L0.H0", "L0.H1", "L0.H2"]):
            left = model(**batch).logits.double().log_softmax(-1)
    divergence = (whole.exp() * (whole - left)).sum(-1)
    assert torch.allclose(found[1].double(), divergence, atol=1e-5)


def test_drawn_classes_have_the_models_frequencies_and_curvature():
    model, batch = case("classification", rows=6)
    anatomy = inspected(model)
    goals = [
        with_teacher_targets(
            model, get_task("classification").distillation, parts_of(batch, 6), seed=seed
        )
        for seed in range(200)
    ]
    with torch.no_grad():
        p = model(**batch).logits.softmax(-1)
    frequencies = torch.stack([goal.sampled_batches[0].targets for goal in goals]).mean(0)
    error = (p * (1 - p) / len(goals)).sqrt()
    assert ((frequencies - p).abs() <= 4.5 * error + 1e-6).all()
    # The mean square of the slope on drawn targets is the Hessian of the divergence.
    model.set_attn_implementation("eager")  # the others have no second derivative
    xi = torch.ones(18, requires_grad=True)

    def divergence(gates):
        with gated(model, anatomy, gates=gates):
            logits = model(**batch).logits.log_softmax(-1)
        return (p * (p.log() - logits)).sum(-1).mean()

    hessian = torch.autograd.functional.hessian(divergence, xi).diagonal().detach()
    few = [
        score(model, anatomy, batches=goal.sampled_batches, loss=goal.loss, method="fisher").values
        for goal in goals[:60]
    ]
    mean, spread = np.mean(few, axis=0), np.std(few, axis=0) / len(few) ** 0.5
    assert (np.abs(mean - hessian.numpy()) < 4.5 * spread + 1e-6).all()


def test_tokens_are_drawn_from_what_the_model_expects():
    model, batch = case("causal-lm", rows=2)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    goals = [
        with_teacher_targets(
            model, get_task("causal-lm").distillation, parts_of(batch, 2), seed=seed
        )
        for seed in range(150)
    ]
    with torch.no_grad():
        p = model(**inputs).logits[0, 3].softmax(-1)
    drawn = torch.stack([goal.sampled_batches[0].targets[0, 3] for goal in goals])
    frequencies = torch.bincount(drawn, minlength=len(p)) / len(goals)
    error = (p * (1 - p) / len(goals)).sqrt()
    assert ((frequencies - p).abs() <= 4.5 * error + 1e-6).all()


def test_drawn_tokens_are_a_language_models_loss():
    model, batch = case("causal-lm", rows=4)
    (part,) = parts_of(batch, 4)
    goal = with_teacher_targets(model, get_task("causal-lm").distillation, [part], seed=0)
    anatomy = inspected(model)
    found = losses(model, anatomy, batches=goal.batches, loss=goal.loss, masks=torch.ones(1, 24))[0]
    for row, (value, example) in enumerate(zip(found, unpadded(batch), strict=True)):
        inputs = {name: tensor for name, tensor in example.items() if name != "labels"}
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        drawn = goal.batches[0].targets[row, : length - 1]
        expected = torch.nn.functional.cross_entropy(logits, drawn)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["accuracy", "matthews_correlation"])
def test_the_metric_is_measured_without_each_head(name):
    model, batch, _loss = setting("bert", rows=24)
    anatomy = inspected(model)
    statistic = load_metric(name)
    predictions = predictions_as_loss(get_task("classification").predict)
    request = ScoreRequest(model, anatomy, as_batches([batch]), predictions, statistic=statistic)
    found = run_method(request, method="ablation")
    assert (found.objective, found.metric) == ("metric", name)
    inputs = {n: v for n, v in batch.items() if n != "labels"}
    labels = batch["labels"].double().numpy()

    def value(gone):
        gates = anatomy.mask(gone)
        with torch.no_grad(), gated(model, anatomy, gates=gates):
            return statistic.compute(model(**inputs).logits.argmax(-1).double().numpy(), labels)

    expected = [value([]) - value([head]) for head in anatomy.heads]
    assert list(found.values) == pytest.approx(expected, abs=1e-9)
    assert max(map(abs, expected)) > 0
    of_site = {site: anatomy.heads[columns] for site, columns in anatomy.columns.items()}
    expected = [
        value({*of_site[head.site]} - {head}) - value(of_site[head.site]) for head in anatomy.heads
    ]
    found = run_method(request, method="only")
    assert list(found.values) == pytest.approx(expected, abs=1e-9)
    assert [one.n for one in found.one_head] == [12] * len(of_site)


def test_perplexity_that_rises_is_a_metric_that_drops():
    model, batch = build("llama"), lm_batch(rows=6)
    task = get_task("causal-lm")
    (part,) = as_batches([batch])
    counts = batch["attention_mask"].sum(1) - 1
    request = ScoreRequest(
        model,
        inspected(model),
        [type(part)(part.inputs, counts, part.example_of_row, part.indices)],
        task.predicted_loss,
        statistic=load_metric("perplexity"),
    )
    found = run_method(request, method="ablation")
    assert lm_loss is not None
    assert max(found.values) > 0
