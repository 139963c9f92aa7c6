"""Gates that learn which heads are worth their price: the distribution by its closed forms, the training by autograd."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from families import build, inspected, score, token_inputs
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit, logit
from test_processes import DyingJournal, StoppedError
from test_scoring import setting
from torch.nn.functional import kl_div
from transformers import T5Config, T5ForConditionalGeneration

import headprune as hp
import headprune.scoring.gates as gates_module
from headprune.batch import Batch, as_batches
from headprune.config import Settings
from headprune.errors import ConfigError
from headprune.heads import HeadId
from headprune.passes import RunContext
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal
from headprune.scoring.derivatives import derivatives
from headprune.scoring.gates import open_probability, sample, settled
from headprune.scoring.request import ScoreRequest
from headprune.workflows.stepwise import check_settings

PLACES = torch.tensor([-4.0, -1.0, -0.3, 0.0, 0.8, 2.0, 5.0], dtype=torch.float64)


def drawn(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(rows, len(PLACES), generator=generator, dtype=torch.float64)
    return sample(PLACES, noise)


def test_a_gate_is_open_as_often_as_the_closed_form_says():
    gates = drawn(400_000)
    probability = open_probability(PLACES)
    error = (probability * (1 - probability) / len(gates)).sqrt()
    assert (((gates != 0).double().mean(0) - probability).abs() <= 5 * error + 1e-12).all()
    assert ((gates >= 0) & (gates <= 1)).all()
    assert (gates == 1).any()


def test_a_gate_is_on_average_what_the_integral_says():
    """E[gate] is the integral of P(gate > x) from 0 to 1, with P(s_bar <= x) in closed form (Louizos et al. 2018, eq. 10)."""

    def survival(x, place):
        return 1 - expit(0.33 * logit((x + 0.1) / 1.2) - place)

    expected = [quad(survival, 0, 1, args=(place,))[0] for place in PLACES.tolist()]
    gates = drawn(400_000, seed=1)
    error = gates.std(0) / len(gates) ** 0.5
    assert ((gates.mean(0) - torch.tensor(expected)).abs() <= 5 * error + 1e-9).all()


@given(st.floats(-20, 20), st.floats(1e-6, 1 - 1e-6))
def test_gates_open_with_log_alpha(place, noise):
    def at(place):
        values = torch.tensor([place], dtype=torch.float64)
        drawn = sample(values, torch.tensor([[noise]], dtype=torch.float64))
        return [drawn.item(), settled(values).item(), open_probability(values).item()]

    low, high = at(place), at(place + 0.1)
    assert all(less <= more for less, more in zip(low, high, strict=True))
    assert low[1] == pytest.approx(min(1, max(0, 1.2 * expit(place) - 0.1)), abs=1e-12)


def test_the_gradient_is_that_of_autograd_on_a_model_gated_by_hand():
    model, batch, loss = setting("bert")
    anatomy = inspected(model)
    generator = torch.Generator().manual_seed(3)
    log_alpha = torch.randn(18, generator=generator, dtype=torch.float64) + 1
    noise = torch.rand(4, 18, generator=generator, dtype=torch.float64)
    weight, price = 1 / 4, 0.05  # of four examples in one batch

    theirs = log_alpha.clone().requires_grad_()
    s = torch.sigmoid((torch.log(noise) - torch.log(1 - noise) + theirs) / 0.33)
    gates = (s * 1.2 - 0.1).clamp(0, 1).float()
    with ExitStack() as stack:
        for layer, block in enumerate(model.bert.encoder.layer):
            mask = gates[:, 6 * layer : 6 * layer + 6].repeat_interleave(8, dim=1)[:, None]
            handle = block.attention.output.dense.register_forward_pre_hook(
                lambda _m, args, mask=mask: (args[0] * mask,)
            )
            stack.callback(handle.remove)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        values = loss(model(**inputs), as_batches([batch])[0])
    is_open = torch.sigmoid(theirs - 0.33 * torch.log(torch.tensor(0.1 / 1.1)))
    (weight * values.double().sum() + price * is_open.sum()).backward()

    batches = as_batches([batch])
    request = ScoreRequest(model, anatomy, batches, loss)
    found = gates_module.gradient(
        request, batches[0], log_alpha=log_alpha, noise=noise, price=price
    )
    assert (theirs.grad != 0).all()
    assert torch.allclose(found, theirs.grad, rtol=1e-5, atol=1e-5 * theirs.grad.abs().max().item())


def test_steps_are_those_of_adam():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=gates_module._RATE)
    state = torch.stack([torch.ones(3), torch.zeros(3), torch.zeros(3)]).double()
    for step, slope in enumerate(slopes):
        parameter.grad = slope.clone()
        optimizer.step()
        state = gates_module._moved(state, slope, step=step)
        assert torch.allclose(state[0], parameter.detach(), rtol=1e-12)


def own_answers(model, inputs):
    """Return a loss that is least where the model answers as it does with all its heads."""
    with torch.no_grad():
        answers = model(**inputs).logits.log_softmax(-1)

    def loss(outputs, batch):
        said = outputs.logits.log_softmax(-1)
        found = kl_div(said, answers[batch.indices], log_target=True, reduction="none")
        return found.flatten(1).sum(1)

    return loss


def seq2seq():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 40, "num_layers": 2}
    config = T5Config(vocab_size=96, **sizes, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "Attention" in name:
                parameter.normal_(0, 0.4)
    ids = token_inputs()
    return model, {**ids, "decoder_input_ids": token_inputs(length=5, seed=1)["input_ids"]}


def useful(name):
    """Return a model and inputs on which most heads are of use."""
    return seq2seq() if name == "t5" else (build(name), token_inputs())


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_head_that_does_nothing_is_worth_least(monkeypatch, name):
    monkeypatch.setattr(gates_module, "_STEPS", 60)
    model, inputs = useful(name)
    anatomy = inspected(model)
    useless = {HeadId(site.id, site.id.layer) for site in anatomy.sites}
    with torch.no_grad():
        for site in anatomy.sites:
            first = site.id.layer * site.head_dim
            model.get_submodule(site.output).weight[:, first : first + site.head_dim] = 0
    rows = [{name: value[row : row + 2] for name, value in inputs.items()} for row in (0, 2)]
    batches = [replace(batch, targets=batch.indices) for batch in as_batches(rows)]
    loss = own_answers(model, inputs)
    scores = hp.score(model, batches, loss=loss, method="gates", anatomy=anatomy)
    assert scores.n == 4
    values = scores.by_head()
    assert {head.site.kind for head in values} == ({"self", "cross"} if name == "t5" else {"self"})
    lowest = min(value for head, value in values.items() if head not in useless)
    assert all(values[head] < lowest for head in useless)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(gates_module, "_STEPS", 12)


def small_setting():
    """Return a model of four heads, batches of different sizes, and what scoring takes of them."""
    model = build("bert", num_hidden_layers=1, num_attention_heads=4)
    _model, batch, loss = setting("bert")
    parts = [{name: value[rows] for name, value in batch.items()} for rows in ([0, 1, 2], [3])]
    return model, {"batches": as_batches(parts), "loss": loss, "method": "gates"}


def scored(model, settings, **more):
    return score(model, inspected(model), **settings, **more).values


@pytest.mark.usefixtures("few_steps")
def test_scores_come_from_the_seed_and_the_batches():
    model, settings = small_setting()
    once = scored(model, settings, seed=1)
    torch.rand(3)  # of no matter
    assert scored(model, settings, seed=1) == once
    assert scored(model, settings, seed=2) != once
    (whole,) = as_batches([setting("bert")[1]])
    assert scored(model, {**settings, "batches": (whole,)}, seed=1) != once


@pytest.mark.usefixtures("few_steps")
def test_every_example_draws_its_own_gates_and_every_pass_its_own_order(monkeypatch):
    model, settings = small_setting()
    sizes, drawn, gradient = [], [], gates_module.gradient

    def watched(*of, noise, **more):
        sizes.append(of[1].num_examples)
        drawn.append(noise.flatten())
        return gradient(*of, noise=noise, **more)

    monkeypatch.setattr(gates_module, "gradient", watched)
    scored(model, settings)
    noise = torch.cat(drawn)
    assert len(noise) == len(noise.unique()) == 6 * 4 * 4
    passes = list(zip(sizes[::2], sizes[1::2], strict=True))
    assert len(passes) == 6
    assert set(passes) == {(3, 1), (1, 3)}


@pytest.mark.usefixtures("few_steps")
def test_the_unit_of_the_loss_is_of_no_matter():
    model, settings = small_setting()
    larger = {**settings, "loss": lambda *of: 128 * settings["loss"](*of)}
    assert scored(model, larger) == pytest.approx(scored(model, settings), rel=1e-3)


def test_a_higher_price_closes_more_gates(monkeypatch):
    monkeypatch.setattr(gates_module, "_STEPS", 60)
    model, settings = small_setting()
    given = {"batches": settings["batches"], "loss": settings["loss"]}
    request = ScoreRequest(model, inspected(model), **given)
    found = [gates_module.trained_gates(request, price=price) for price in (0.0, 100.0)]
    assert (found[0] > found[1]).all()
    assert (settled(found[1]) == 0).all()


def test_examples_count_the_same_whatever_the_size_of_their_batch(monkeypatch):
    """Where gates stay put, a pass sums up to the gradient of the mean loss: here one batch has three examples, one has one."""
    model, settings = small_setting()
    given = {"batches": settings["batches"], "loss": settings["loss"]}
    slopes = []
    monkeypatch.setattr(
        gates_module, "_moved", lambda state, slope, step: slopes.append(slope) or state
    )
    monkeypatch.setattr(gates_module, "_STEPS", 2)
    monkeypatch.setattr(gates_module, "_START", 20.0)  # all gates are 1, whatever the noise
    monkeypatch.setattr(
        gates_module, "sample", lambda log_alpha, noise: (log_alpha - 19).expand_as(noise)
    )
    request = ScoreRequest(model, inspected(model), **given)
    gates_module.trained_gates(request, price=0.0)
    assert len(slopes) == 2
    expected = torch.cat([derivatives(request, b) for b in given["batches"]])
    assert torch.allclose(sum(slopes) / 2, expected.double().mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("done", [1, 7])
def test_a_training_that_was_killed_goes_on_and_ends_with_the_same_bits(
    tmp_path, monkeypatch, done
):
    monkeypatch.setattr(gates_module, "_STEPS", 9)
    model, settings = small_setting()
    whole = scored(model, settings)
    DyingJournal.left = done
    with pytest.raises(StoppedError):
        scored(model, settings, context=RunContext(journal=DyingJournal(tmp_path)))
    ran, gradient = [], gates_module.gradient
    monkeypatch.setattr(
        gates_module, "gradient", lambda *a, **k: ran.append(1) or gradient(*a, **k)
    )
    assert scored(model, settings, context=RunContext(journal=Journal(tmp_path))) == whole
    # Two results are of the losses that set the price; steps come in whole passes of two batches.
    assert len(ran) == 10 - max(0, done - 2)
    assert Journal(tmp_path).count() == 12


@pytest.mark.usefixtures("few_steps")
def test_weights_stay_as_they_are():
    model, settings = small_setting()
    model.bert.embeddings.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    scored(model, settings)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.usefixtures("few_steps")
def test_rows_of_one_example_share_their_gates():
    """A pair is one example with one mask: the same text twice under different gates would differ."""
    model = build("bert", cls="BertModel", num_hidden_layers=1)
    one = {name: value[:1].repeat(2, 1) for name, value in token_inputs().items()}
    pair = Batch(one, torch.zeros(1), torch.tensor([0, 0]), torch.arange(1))
    seen = []

    def loss(outputs, _batch):
        rows = outputs[0][:, 0]
        seen.append((rows[0] - rows[1]).abs().max().item())
        return rows.square().mean()[None]

    scored(model, {"batches": (pair,), "loss": loss, "method": "gates"})
    assert max(seen) < 1e-5


def test_gates_are_trained_once_by_one_process():
    settings = Settings.of(method="gates", keep=0.5)
    check_settings(settings, world=World())
    with pytest.raises(ConfigError, match="in one process"):
        check_settings(settings, world=World(0, 2))
    with pytest.raises(ConfigError, match="use another method than ablation, only, shapley, gates"):
        check_settings(settings.replaced(steps=2))
