"""Every way to score, against brute force: one row at a time, no padding."""

import itertools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from families import build, inspected, token_inputs
from families import score as score_known
from test_scoring import one_row_at_a_time, setting

import headprune as hp
from headprune.batch import Batch, as_batches
from headprune.config import ScoreSpec
from headprune.errors import ConfigError, DataError, UnsupportedError
from headprune.masking import gated
from headprune.passes import RunContext
from headprune.runtime.journal import Journal
from headprune.scoring import ablation as ablation_module
from headprune.scoring.catalogue import METHODS


def unpadded(batch):
    """Return each row as a batch of one without its padding."""
    for row in one_row_at_a_time(batch):
        real = row["attention_mask"][0].bool()
        yield {name: value[:, real] if name != "labels" else value for name, value in row.items()}


def moves(model, batch, loss):
    """Return d l_n / d xi_h [examples, heads], an example a backward."""
    anatomy = inspected(model)
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
    anatomy = inspected(model)
    sizes = torch.zeros(4, len(anatomy.heads), dtype=torch.float64)
    for place, row in enumerate(unpadded(batch)):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with recorded(model, anatomy) as seen:
            value = loss(model(**inputs), as_batches([row])[0]).sum()
        calls = [seen[site.id] for site in anatomy.sites]
        for site, z, slope in zip(
            anatomy.sites, calls, torch.autograd.grad(value, calls), strict=True
        ):
            by_token = (z * slope).unflatten(-1, (len(site.heads), site.head_dim)).sum(-1)
            sizes[place, anatomy.columns[site.id]] = by_token[0].abs().sum(0).detach().double()
    scores = hp.score(model, [batch], loss=loss, method="gradient:token")
    assert close(scores, sizes.mean(0))
    errors = torch.tensor(scores.standard_errors)
    assert torch.allclose(errors, (sizes.std(0) / 2).to(errors), rtol=1e-3)


def test_a_gradient_per_token_is_never_less_than_per_example():
    model, batch, loss = setting("bert")
    by_token = hp.score(model, [batch], loss=loss, method="gradient:token").values
    by_example = hp.score(model, [batch], loss=loss, method="gradient").values
    assert all(more >= less - 1e-6 for more, less in zip(by_token, by_example, strict=True))


def all_z(model, batch):
    """Return every site's z over all positions of all rows: [positions, heads, head_dim]."""
    anatomy = inspected(model)
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
    anatomy, found = inspected(model), all_z(model, batch)
    expected = []
    for site in anatomy.sites:
        weight = model.get_submodule(site.output).weight.detach().double()
        weight = weight if family == "gpt2" else weight.T
        norms = weight.square().sum(1).view(len(site.heads), site.head_dim)
        variance = found[site.id].var(0, correction=0)
        expected.append(variance * norms)
    heads = torch.cat([part.mean(1) for part in expected])
    assert close(hp.score(model, [batch], loss=loss, method="fluctuation"), heads)
    squares = [part.square() for part in expected]
    standard = torch.cat([((part - part.mean()) / part.std()).mean(1) for part in squares])
    assert close(hp.score(model, [batch], loss=loss, method="fluctuation:channel"), standard)


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
    anatomy = inspected(bert)
    bert.bert.encoder.layer[1].attention.self.register_forward_hook(
        lambda _m, _a, output: (output[0], None)
    )
    with pytest.raises(UnsupportedError, match="L1"):
        hp.score(bert, [batch], loss=lambda o, b: o[0][:, 0], method="entropy", anatomy=anatomy)


# By channel, scores are relative to the heads that are there; gates draw noise for as many heads as there are.
@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"random", "shapley", "fluctuation:channel", "gates"})
)
def test_dead_weight_changes_no_score(method):
    """Padded groups hold heads that are gone: the others score as they did under a mask."""
    model, batch, loss = setting("llama")
    anatomy = inspected(model)
    gone = ["L0.H0", "L1.H2", "L1.H3", "L1.H4"]
    with hp.masked(model, gone, anatomy=anatomy):
        masked = hp.score(model, [batch], loss=loss, method=method, anatomy=anatomy).by_head()
    hp.prune(model, gone, anatomy=anatomy, pad=True)
    padded = inspected(model)
    assert any(site.padding for site in padded.sites)
    pruned = hp.score(model, [batch], loss=loss, method=method, anatomy=padded).by_head()
    largest = max(abs(value) for value in pruned.values())
    for head, value in pruned.items():
        assert value == pytest.approx(masked[head], rel=1e-4, abs=1e-5 * largest)
        assert value != 0


def paired(batch):
    """Return the rows as examples of two rows each, of different lengths."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return Batch(inputs, torch.zeros(2), torch.tensor([0, 1, 0, 1]), torch.arange(2))


@pytest.mark.parametrize(
    "method",
    sorted(
        set(METHODS)
        - {
            "random",
            "magnitude",
            "shapley",
            "activation",
            "fluctuation",
            "fluctuation:channel",
            "unique",
        }
    ),
)
def test_an_example_may_have_several_rows(method):
    """Its loss is one, of both; what is averaged over positions is averaged over those of both."""
    model = build("bert", cls="BertModel")
    both = paired(token_inputs())
    parts = [
        Batch(
            {name: value[rows] for name, value in both.inputs.items()},
            both.targets[place : place + 1],
            torch.zeros(2, dtype=torch.long),
            torch.tensor([place]),
        )
        for place, rows in enumerate(([0, 2], [1, 3]))
    ]

    def loss(outputs, batch):
        rows = outputs[0][:, 0]
        found = [
            rows[batch.example_of_row == place].prod(0).mean()
            for place in range(batch.num_examples)
        ]
        return torch.stack(found)

    one = hp.score(model, [both], loss=loss, method=method)
    many = hp.score(model, parts, loss=loss, method=method)
    assert one.n == many.n == 2
    if METHODS[method].depends_on_batches:
        assert one.values != many.values
    else:
        assert one.values == pytest.approx(many.values, rel=1e-4, abs=1e-6)


def test_a_sink_is_not_looked_for_in_padding():
    model, _batch, loss = setting("llama")
    batch = {**token_inputs(left=True), "labels": torch.ones(4, dtype=torch.long)}
    with pytest.raises(DataError, match="padding"):
        hp.score(model, [batch], loss=loss, method="sink")


def four_heads():
    model = build("bert", num_hidden_layers=1, num_attention_heads=4)
    _model, batch, loss = setting("bert")
    return model, batch, loss


@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_shapley_shares_agree_with_all_subsets(at_once, monkeypatch):
    monkeypatch.setattr(ablation_module, "_AT_ONCE", at_once)
    model, batch, loss = four_heads()
    anatomy = inspected(model)
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


def test_an_order_ends_where_nothing_is_left_to_lose(monkeypatch):
    """Everything is near the end if the tolerance is large: the first chunk of every order is all that is run."""
    monkeypatch.setattr(ablation_module, "_AT_ONCE", 1)
    monkeypatch.setattr(ablation_module, "_TOLERANCE", 1e9)
    model, batch, loss = four_heads()
    ran = []
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda _m, args: ran.append(len(args[0])))
    short = hp.score(model, [batch], loss=loss, method="shapley")
    once, ran[:] = len(ran), []
    monkeypatch.setattr(ablation_module, "_TOLERANCE", 0.0)
    whole = hp.score(model, [batch], loss=loss, method="shapley")
    assert len(ran) > 2 * once
    assert short.values != whole.values


def test_standardized_layers_have_mean_0_and_deviation_1():
    model, batch, loss = setting("bert")
    scores = hp.score(
        model, [batch], loss=loss, method=hp.ScoreSpec(method="fluctuation", normalize="standard")
    )
    by_layer = torch.tensor(scores.values).view(3, 6)
    assert by_layer.mean(1) == pytest.approx(torch.zeros(3), abs=1e-6)
    assert by_layer.std(1) == pytest.approx(torch.ones(3), abs=1e-6)
    plain = hp.score(model, [batch], loss=loss, method="fluctuation")
    order = torch.tensor(plain.values).view(3, 6).argsort(1)
    assert torch.equal(order, by_layer.argsort(1))


def test_every_row_of_the_catalogue_has_a_function_and_a_setting():
    assert all(callable(row.load()) and row.name == name for name, row in METHODS.items())
    assert all(ScoreSpec(method=method).method == method for method in METHODS)
    with pytest.raises(ConfigError, match="did you mean 'gradient'"):
        ScoreSpec(method="gradent")


def test_what_a_row_says_of_rows_and_derivatives_is_so():
    """A method that needs no rows runs nothing, one that takes derivatives has a graph."""
    model, batch, loss = setting("bert")
    for name, row in METHODS.items():
        graphs, forwards = [], []
        handle = model.register_forward_pre_hook(lambda *_, to=forwards: to.append(1))

        def watched(outputs, part, to=graphs):
            to.append(torch.is_grad_enabled())
            return loss(outputs, part)

        hp.score(model, [batch], loss=watched, method=name)
        handle.remove()
        assert bool(forwards) == row.needs_rows, name
        assert bool(graphs) == row.needs_labels, name
        assert any(graphs) >= row.differentiates, name


@pytest.mark.parametrize(
    "together",
    [
        ("gradient", "fisher", "gradient:batch", "fisher:batch"),
        ("activation", "fluctuation", "fluctuation:channel"),
        ("confidence", "entropy", "sink"),
    ],
)
def test_methods_that_are_made_of_the_same_pass_share_it(tmp_path, together):
    model, batch, loss = setting("bert")
    anatomy, batches = inspected(model), as_batches(one_row_at_a_time(batch))
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def score(method, folder):
        before = len(forwards)
        context = RunContext(journal=Journal(folder))
        given = {"batches": batches, "loss": loss, "method": method, "context": context}
        return score_known(model, anatomy, **given), len(forwards) - before

    apart = {method: score(method, tmp_path / method.replace(":", "-")) for method in together}
    shared = {method: score(method, tmp_path / "shared") for method in together}
    for method in together:
        assert shared[method][0] == apart[method][0]
        assert apart[method][1] >= len(batches)
    first, *others = (count for _scores, count in shared.values())
    assert first == apart[together[0]][1]
    assert sum(others) <= len(others)  # attention is looked at once to see whether it shows
