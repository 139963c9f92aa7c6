"""Every way to score, against brute force: one row at a time, no padding, by hooks on the modules that the anatomy names."""

import itertools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from families import build, token_inputs
from test_scoring import one_row_at_a_time, setting

import headprune as hp
from headprune.batch import as_batches
from headprune.config import Recipe
from headprune.errors import UnsupportedError
from headprune.masking import gated
from headprune.scoring import METHODS


def unpadded(batch):
    """Return each row as a batch of one without its padding."""
    for row in one_row_at_a_time(batch):
        length = int(row["attention_mask"].sum())
        yield {
            name: value[:, :length] if name != "labels" else value for name, value in row.items()
        }


def moves(model, batch, loss):
    """Return d l_n / d xi_h [examples, heads], an example a backward."""
    anatomy = hp.inspect(model)
    found = []
    for row in unpadded(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        xi = torch.ones(len(anatomy.heads), requires_grad=True)
        with gated(model, anatomy, gates=xi):
            value = loss(model(**inputs), as_batches([row])[0]).sum()
        found.append(torch.autograd.grad(value, xi)[0].double())
    return torch.stack(found)


@contextmanager
def recorded(model, anatomy):
    """Keep what each output projection reads: [rows, length, heads * head_dim]."""
    seen = {}
    with ExitStack() as stack:
        for site in anatomy.sites:

            def keep(_module, args, site=site):
                seen[site.id] = args[0]

            handle = model.get_submodule(site.output).register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        yield seen


def close(scores, expected):
    values = torch.tensor(scores.values, dtype=torch.float64)
    return torch.allclose(values, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["gradient", "fisher"])
def test_per_example_methods_are_means_over_examples(family, method):
    model, batch, loss = setting(family)
    found = moves(model, batch, loss)
    sizes = found.abs() if method == "gradient" else found.square()
    scores = hp.score(model, [batch], loss=loss, method=method)
    assert close(scores, sizes.mean(0))
    error = sizes.std(0) / len(sizes) ** 0.5
    assert torch.tensor(scores.standard_errors).double() == pytest.approx(error, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["gradient:batch", "fisher:batch"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_per_batch_methods_cancel_within_a_batch(method, size):
    model, batch, loss = setting("bert")
    found = moves(model, batch, loss)
    parts = [
        {name: value[start : start + size] for name, value in batch.items()}
        for start in range(0, 4, size)
    ]
    means = torch.stack([part.mean(0) for part in found.split(size)])
    expected = (means.abs() if method == "gradient:batch" else means.square()).mean(0)
    assert close(hp.score(model, parts, loss=loss, method=method), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_per_token_gradients_are_taken_at_every_position(name):
    model, batch, loss = setting(name)
    anatomy = hp.inspect(model)
    total = torch.zeros(len(anatomy.heads), dtype=torch.float64)
    for row in unpadded(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with recorded(model, anatomy) as seen:
            value = loss(model(**inputs), as_batches([row])[0]).sum()
        calls = [seen[site.id] for site in anatomy.sites]
        for site, z, slope in zip(
            anatomy.sites, calls, torch.autograd.grad(value, calls), strict=True
        ):
            by_token = (z * slope).unflatten(-1, (len(site.heads), site.head_dim)).sum(-1)
            total[anatomy.columns[site.id]] += by_token[0].abs().sum(0).detach().double()
    scores = hp.score(model, [batch], loss=loss, method="gradient:token")
    assert close(scores, total / 4)


def test_a_gradient_per_token_is_never_less_than_per_example():
    model, batch, loss = setting("bert")
    by_token = hp.score(model, [batch], loss=loss, method="gradient:token").values
    by_example = hp.score(model, [batch], loss=loss, method="gradient").values
    assert all(more >= less - 1e-6 for more, less in zip(by_token, by_example, strict=True))


def all_z(model, batch):
    """Return every site's z over all positions of all rows: [positions, heads, head_dim]."""
    anatomy = hp.inspect(model)
    found = {site.id: [] for site in anatomy.sites}
    for row in unpadded(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with recorded(model, anatomy) as seen, torch.no_grad():
            model(**inputs)
        for site in anatomy.sites:
            z = seen[site.id][0].unflatten(-1, (len(site.heads), site.head_dim))
            found[site.id].append(z.double())
    return {site: torch.cat(parts) for site, parts in found.items()}


def test_activation_is_the_norm_of_mean_sizes(family):
    model, batch, loss = setting(family)
    expected = torch.cat([z.abs().mean(0).norm(dim=1) for z in all_z(model, batch).values()])
    assert close(hp.score(model, [batch], loss=loss, method="activation"), expected)


def test_fluctuation_is_the_variance_that_the_projection_lets_through(family):
    model, batch, loss = setting(family)
    anatomy = hp.inspect(model)
    expected = []
    for site in anatomy.sites:
        weight = model.get_submodule(site.output).weight.detach().double()
        weight = weight if family == "gpt2" else weight.T
        norms = weight.square().sum(1).view(len(site.heads), site.head_dim)
        variance = all_z(model, batch)[site.id].var(0, correction=0)
        expected.append((variance * norms).mean(1))
    assert close(hp.score(model, [batch], loss=loss, method="fluctuation"), torch.cat(expected))


def summaries(weights):
    """Return confidence, entropy and sink of [heads, queries, keys] by their definitions."""
    safe = weights.clamp_min(1e-300)
    return {
        "confidence": weights.max(-1).values.mean(1),
        "entropy": (weights * safe.log()).sum(-1).mean(1),
        "sink": 1 - weights[..., 0].mean(1),
    }


@pytest.mark.parametrize("method", ["confidence", "entropy", "sink"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_attention_weights_are_those_that_the_model_reports(name, method):
    model, batch, loss = setting(name)
    eager = build(name, attention="eager")
    found = []
    for row in unpadded(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with torch.no_grad():
            reported = eager(**inputs, output_attentions=True).attentions
        found.append(torch.cat([summaries(w[0].double())[method] for w in reported]))
    found = torch.stack(found)
    scores = hp.score(model, [batch], loss=loss, method=method)
    assert close(scores, found.mean(0))
    assert model.config._attn_implementation == "sdpa"
    errors = torch.tensor(scores.standard_errors).double()
    assert errors == pytest.approx(found.std(0) / 2, rel=1e-3, abs=1e-6)


def test_pruned_heads_have_no_weights_and_the_others_keep_theirs():
    model, batch, loss = setting("bert")
    whole = hp.score(model, [batch], loss=loss, method="sink").by_head()
    hp.prune(model, ["L2.H1", "L2.H4"])
    scores = hp.score(model, [batch], loss=loss, method="sink").by_head()
    assert len(scores) == 16
    for head, value in scores.items():
        assert value == pytest.approx(whole[head], abs=1e-5)


def test_an_attention_that_keeps_its_weights_to_itself_is_refused(bert):
    batch = {**token_inputs(), "labels": torch.zeros(4, dtype=torch.long)}
    anatomy = hp.inspect(bert)
    bert.bert.encoder.layer[1].attention.self.register_forward_hook(
        lambda _m, _a, output: (output[0], None)
    )
    with pytest.raises(UnsupportedError, match="L1"):
        hp.score(bert, [batch], loss=lambda o, b: o[0][:, 0], method="entropy", anatomy=anatomy)


def four_heads():
    model = build("bert", num_hidden_layers=1, num_attention_heads=4)
    _model, batch, loss = setting("bert")
    return model, batch, loss


def test_shapley_shares_agree_with_all_subsets():
    model, batch, loss = four_heads()
    anatomy = hp.inspect(model)
    value = {}
    for kept in itertools.product((0.0, 1.0), repeat=4):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad(), gated(model, anatomy, gates=torch.tensor(kept)):
            value[kept] = loss(model(**inputs), as_batches([batch])[0]).mean().item()
    exact = torch.zeros(4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        kept = [1.0] * 4
        for head in order:
            before = value[tuple(kept)]
            kept[head] = 0.0
            exact[head] += (value[tuple(kept)] - before) / 24
    scores = hp.score(model, [batch], loss=loss, method="shapley", anatomy=anatomy)
    errors = torch.tensor(scores.standard_errors)
    found = torch.tensor(scores.values)
    assert ((found - exact).abs() <= 4 * errors + 1e-6).all()
    # What all heads are worth together is shared out, whatever the orders (but for what an early end leaves out).
    whole = value[(0.0,) * 4] - value[(1.0,) * 4]
    assert found.sum().item() == pytest.approx(whole, rel=0.02)
    again = hp.score(model, [batch], loss=loss, method="shapley", anatomy=anatomy, seed=1)
    assert again.values != scores.values


def test_standardized_layers_have_mean_0_and_deviation_1():
    model, batch, loss = setting("bert")
    scores = hp.score(model, [batch], loss=loss, method="fluctuation", normalize="standard")
    by_layer = torch.tensor(scores.values).view(3, 6)
    assert by_layer.mean(1) == pytest.approx(torch.zeros(3), abs=1e-6)
    assert by_layer.std(1) == pytest.approx(torch.ones(3), abs=1e-6)
    plain = hp.score(model, [batch], loss=loss, method="fluctuation")
    order = torch.tensor(plain.values).view(3, 6).argsort(1)
    assert torch.equal(order, by_layer.argsort(1))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_recipes_know_every_method(method):
    assert Recipe(method=method).method == method
