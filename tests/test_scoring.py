"""Scores against brute force, and the laws they keep."""

import pytest
import torch
from families import DECODERS, build, inspected, sentences, token_inputs
from torch.nn.functional import cross_entropy

import headprune as hp
from headprune.batch import as_batches
from headprune.errors import DataError, ModelError
from headprune.passes import RunContext
from headprune.replay.losses import losses
from headprune.scoring.catalogue import METHODS
from headprune.tasks.batches import InputFormat
from headprune.tasks.rows import Example
from headprune.tasks.task import get_task


def classifier_loss(outputs, batch):
    return cross_entropy(outputs.logits, batch.targets, reduction="none")


def lm_loss(outputs, batch):
    """The task's loss; in double where the model is, so that differences of it mean something."""
    if outputs.logits.dtype != torch.float64:
        return get_task("causal-lm").loss(outputs, batch)
    mask = batch.inputs["attention_mask"][:, 1:]
    chosen = batch.inputs["input_ids"][:, 1:, None]
    found = outputs.logits[:, :-1].log_softmax(-1).gather(-1, chosen)[..., 0]
    return -(found * mask).sum(1) / mask.sum(1)


def lm_batch(**settings):
    inputs = token_inputs(**settings)
    return {**inputs, "labels": inputs["attention_mask"].sum(1) - 1}


def setting(family, **settings):
    """Return a model, a batch and a loss that fits both."""
    if family in DECODERS:
        return build(family), lm_batch(**settings), lm_loss
    inputs = token_inputs(**settings)
    labels = torch.arange(len(inputs["input_ids"])) % 2
    return build(family), {**inputs, "labels": labels}, classifier_loss


def one_row_at_a_time(batch):
    return [
        {name: value[row : row + 1] for name, value in batch.items()}
        for row in range(len(batch["labels"]))
    ]


def brute_force_losses(model, batch, loss, removed, anatomy):
    """Loss of every example with heads silenced, one row per forward, no padding shared."""
    found = []
    for row in one_row_at_a_time(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with torch.no_grad(), hp.masked(model, removed, anatomy=anatomy):
            found.append(loss(model(**inputs), as_batches([row])[0]).item())
    return torch.tensor(found, dtype=torch.float64)


def test_gradient_is_the_mean_absolute_derivative_per_example(family):
    model, batch, loss = setting(family)
    scores = hp.score(model, [batch], loss=loss, method="gradient")
    anatomy = inspected(model)
    model = model.double()
    step = 1e-3
    for place, head in list(enumerate(scores.heads))[::5]:
        moved = []
        for sign in (1, -1):
            rows = len(batch["labels"])
            columns = anatomy.columns[head.site]
            gates = torch.ones(rows, columns.stop - columns.start, dtype=torch.float64)
            gates[:, head.head] += sign * step
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with torch.no_grad(), hp.masked(model, {str(head.site): gates}, anatomy=anatomy):
                moved.append(loss(model(**inputs), as_batches([batch])[0]).double())
        derivative = (moved[0] - moved[1]) / (2 * step)
        expected = derivative.abs()
        assert scores.values[place] == pytest.approx(expected.mean().item(), rel=2e-2, abs=1e-4)
        error = expected.std() / len(expected) ** 0.5
        assert scores.standard_errors[place] == pytest.approx(error.item(), rel=2e-2, abs=1e-4)


def test_ablation_is_the_naive_loop(family):
    model, batch, loss = setting(family)
    anatomy = inspected(model)
    scores = hp.score(model, [batch], loss=loss, method="ablation", anatomy=anatomy)
    base = brute_force_losses(model, batch, loss, [], anatomy)
    for place, head in enumerate(scores.heads):
        difference = brute_force_losses(model, batch, loss, [head], anatomy) - base
        assert scores.values[place] == pytest.approx(difference.mean().item(), abs=2e-5)
        error = difference.std() / len(difference) ** 0.5
        assert scores.standard_errors[place] == pytest.approx(error.item(), abs=2e-5)


def test_losses_takes_any_list_of_masks(family):
    model, batch, loss = setting(family)
    anatomy = inspected(model)
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(7, len(anatomy.heads), generator=generator) > 0.4).float()
    masks[3] = 1
    masks[4, : len(anatomy.heads) // 3] = 1
    found = losses(
        model,
        anatomy,
        batches=as_batches([batch]),
        loss=loss,
        masks=masks,
        context=RunContext(tokens_per_forward=100),
    )
    for mask, row in zip(masks, found, strict=True):
        removed = [head for head, value in zip(anatomy.heads, mask, strict=True) if not value]
        expected = brute_force_losses(model, batch, loss, removed, anatomy)
        assert row.double() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("method", ["gradient", "ablation"])
def test_scores_do_not_depend_on_batch_size(family, method):
    model, batch, loss = setting(family, rows=16)
    anatomy = inspected(model)
    every = []
    for size in (1, 3, 16):
        parts = [
            {name: value[start : start + size] for name, value in batch.items()}
            for start in range(0, 16, size)
        ]
        scores = hp.score(model, parts, loss=loss, method=method, anatomy=anatomy)
        assert scores.n == 16
        every.append(torch.tensor(scores.values))
    for other in every[1:]:
        assert torch.allclose(every[0], other, rtol=1e-5, atol=1e-5 * every[0].abs().max().item())


def left_padded(batch):
    """Return the batch padded on the left, with the positions that models count from the left."""
    width = batch["input_ids"].shape[1]
    moved = {name: value.clone() for name, value in batch.items()}
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for name in ("input_ids", "attention_mask"):
            moved[name][row] = torch.roll(batch[name][row], width - length)
    moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return moved


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("method", ["gradient", "ablation"])
def test_scores_do_not_depend_on_the_side_of_padding(family, method):
    model, batch, loss = setting(family)
    right = hp.score(model, [batch], loss=loss, method=method)
    left = hp.score(model, [left_padded(batch)], loss=loss, method=method)
    a, b = torch.tensor(right.values), torch.tensor(left.values)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item())


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_batches_are_the_same_whatever_side_the_tokenizer_pads(family, tokenizer):
    task = get_task("classification")
    examples = [Example((text,), index % 2) for index, text in enumerate(sentences(10))]
    found = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        accepts = {"input_ids", "attention_mask"}.__contains__
        batches = task.to_batches(examples, InputFormat(tokenizer, 16, None, 3, accepts))
        scores = hp.score(build(family), batches, loss=task.loss, method="gradient")
        found.append(scores.values)
    assert found[0] == found[1]


def test_scoring_leaves_the_model_as_it_was(bert):
    batch = {**token_inputs(), "labels": torch.tensor([0, 1, 0, 1])}
    before = {name: (p.clone(), p.requires_grad) for name, p in bert.named_parameters()}
    bert.train()
    for method in METHODS:
        hp.score(bert, [batch], loss=classifier_loss, method=method)
    assert bert.training
    for name, parameter in bert.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(module._forward_pre_hooks for module in bert.modules())


def test_magnitude_is_the_norm_of_the_output_columns():
    model, gpt = build("bert"), build("gpt2")
    batch = {**token_inputs(), "labels": torch.zeros(4, dtype=torch.long)}
    scores = hp.score(model, [batch], loss=classifier_loss, method="magnitude")
    weight = model.bert.encoder.layer[1].attention.output.dense.weight
    assert scores.values[6 + 2] == pytest.approx(weight[:, 16:24].norm().item())
    scores = hp.score(gpt, [batch], loss=lm_loss, method="magnitude")
    weight = gpt.transformer.h[1].attn.c_proj.weight
    assert scores.values[6 + 2] == pytest.approx(weight[16:24].norm().item())


def test_random_scores_are_the_seed_s():
    model, batch, loss = setting("bert")
    first, again, other = (
        hp.score(model, [batch], loss=loss, method="random", seed=seed).values for seed in (1, 1, 2)
    )
    assert first == again != other


def test_normalised_scores_have_unit_norm_in_every_layer():
    model, batch, loss = setting("bert")
    scores = hp.score(
        model, [batch], loss=loss, method=hp.ScoreSpec(method="gradient", normalize="layer")
    )
    plain = hp.score(model, [batch], loss=loss, method="gradient")
    for layer in range(3):
        values = torch.tensor(scores.values[6 * layer : 6 * layer + 6])
        assert values.norm().item() == pytest.approx(1.0)
        raw = torch.tensor(plain.values[6 * layer : 6 * layer + 6])
        assert torch.allclose(values, raw / raw.norm())
        errors = torch.tensor(scores.standard_errors[6 * layer : 6 * layer + 6])
        raw_errors = torch.tensor(plain.standard_errors[6 * layer : 6 * layer + 6])
        assert torch.allclose(errors, raw_errors / raw.norm())


def test_scores_of_a_pruned_model_are_those_of_the_masked_one():
    model, batch, loss = setting("bert")
    gone = ["L0.H1", "L1.H0", "L1.H3"]
    masks = torch.ones(1, 18)
    masks[0, [1, 6, 9]] = 0
    whole = inspected(model)
    base = brute_force_losses(model, batch, loss, gone, whole)
    hp.prune(model, gone)
    scores = hp.score(model, [batch], loss=loss, method="ablation")
    fresh = build("bert")
    assert len(scores.heads) == 15
    for head, value in list(scores.by_head().items())[::4]:
        difference = brute_force_losses(fresh, batch, loss, [*gone, head], whole) - base
        assert value == pytest.approx(difference.mean().item(), abs=2e-5)


def test_a_loss_that_is_not_a_number_is_an_error_of_ours(bert):
    batch = {**token_inputs(), "labels": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(ModelError, match="not finite"):
        hp.score(bert, [batch], loss=lambda outputs, _batch: outputs.logits[:, 0] / 0)


@pytest.mark.parametrize("method", ["gradient", "ablation"])
def test_a_mean_over_the_batch_is_refused(bert, method):
    batch = {**token_inputs(), "labels": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(DataError, match="one number per example|shape"):
        hp.score(
            bert,
            [batch],
            loss=lambda outputs, b: cross_entropy(outputs.logits, b.targets),
            method=method,
        )


def test_one_example_has_no_standard_error(bert):
    batch = {**token_inputs(rows=1), "labels": torch.zeros(1, dtype=torch.long)}
    assert hp.score(bert, [batch], loss=classifier_loss, method="gradient").standard_errors is None


def test_a_forward_of_a_module_s_own_survives(bert):
    layer = bert.bert.encoder.layer[0]
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    own = layer.forward
    batch = {**token_inputs(), "labels": torch.zeros(4, dtype=torch.long)}
    hp.score(bert, [batch], loss=classifier_loss, method="ablation")
    assert layer.forward is own


@pytest.mark.parametrize(
    ("family", "cls"),
    [("bert", "BertModel"), ("distilbert", "DistilBertModel"), ("roberta", "RobertaModel")],
)
def test_embeddings_do_not_depend_on_the_side_of_padding(family, cls):
    """Of encoders, those that read every token; a classifier reads the first one, which must not be padding."""

    def loss(outputs, batch):
        mask = batch.inputs["attention_mask"].unsqueeze(-1)
        return ((outputs.last_hidden_state * mask).sum(1) / mask.sum(1)).square().mean(1)

    model, batch = build(family, cls=cls), {**token_inputs(), "labels": torch.zeros(4)}
    left = left_padded(batch)
    if family == "roberta":
        del left["position_ids"]  # it counts them from the padding itself
    a, b = (
        torch.tensor(hp.score(model, [one], loss=loss, method="gradient").values)
        for one in (batch, left)
    )
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_only_masks_all_other_heads_of_an_attention(name):
    model, batch, loss = setting(name, rows=7)
    anatomy = inspected(model)
    scores = hp.score(model, [batch], loss=loss, method="only", anatomy=anatomy)
    full = brute_force_losses(model, batch, loss, [], anatomy)
    assert [one.head.site for one in scores.one_head] == [site.id for site in anatomy.sites]
    for site, one in zip(anatomy.sites, scores.one_head, strict=True):
        heads = [head for head in anatomy.heads if head.site == site.id]
        none = brute_force_losses(model, batch, loss, heads, anatomy)
        alone = {
            head: brute_force_losses(model, batch, loss, [h for h in heads if h != head], anatomy)
            for head in heads
        }
        for head, losses_ in alone.items():
            gain, place = none - losses_, scores.heads.index(head)
            error = gain.std() / len(gain) ** 0.5
            assert scores.values[place] == pytest.approx(gain.mean().item(), abs=2e-5)
            assert scores.standard_errors[place] == pytest.approx(error.item(), abs=2e-5)
        assert one.head == min(heads, key=lambda head: alone[head][::2].mean())
        cost = (alone[one.head] - full)[1::2]
        assert (one.n, one.cost) == (3, pytest.approx(cost.mean().item(), abs=2e-5))
        assert one.standard_error == pytest.approx((cost.std() / 3**0.5).item(), abs=2e-5)
        assert one.cost_of_none == pytest.approx((none - full)[1::2].mean().item(), abs=2e-5)


def test_the_only_head_of_an_attention_costs_nothing_alone(bert):
    anatomy = inspected(bert)
    hp.prune(bert, [head for head in anatomy.heads if head.site.layer == 0 and head.head != 2])
    batch = {**token_inputs(), "labels": torch.tensor([0, 1, 0, 1])}
    first = hp.score(bert, [batch], loss=classifier_loss, method="only").one_head[0]
    assert (str(first.head), first.cost) == ("L0.H2", pytest.approx(0, abs=1e-6))
