"""Gates that learn which heads are worth their price: the distribution by its closed forms, the training by autograd."""

import json
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from families import build, token_inputs
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit, logit
from test_processes import DyingJournal, StoppedError
from test_scoring import setting
from torch.nn.functional import kl_div
from transformers import T5Config, T5ForConditionalGeneration

import headprune as hp
from headprune.batch import Batch, as_batches
from headprune.config import Recipe
from headprune.distributed import World
from headprune.errors import ConfigError
from headprune.journal import Journal
from headprune.passes import IN_SILENCE, Pass
from headprune.pipeline.scores import check_course
from headprune.scoring import METHODS, score
from headprune.scoring.hard_concrete import open_probability, sample, settled

GATES = sys.modules[METHODS["gates"].__module__]  # its name in the package is the function's
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
    anatomy = hp.inspect(model)
    generator = torch.Generator().manual_seed(3)
    log_alpha = torch.randn(18, generator=generator, dtype=torch.float64) + 1
    noise = torch.rand(4, 18, generator=generator, dtype=torch.float64)
    weight, price = 0.3, 0.05

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

    found = GATES.gradient(
        model,
        anatomy,
        as_batches([batch])[0],
        loss,
        log_alpha=log_alpha,
        noise=noise,
        weight=weight,
        price=price,
    )
    assert (theirs.grad != 0).all()
    assert torch.allclose(found, theirs.grad, rtol=1e-5, atol=1e-5 * theirs.grad.abs().max().item())


def test_steps_are_those_of_adam():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=GATES._RATE)
    state = torch.stack([torch.ones(3), torch.zeros(3), torch.zeros(3)]).double()
    for step, slope in enumerate(slopes):
        parameter.grad = slope.clone()
        optimizer.step()
        state = GATES._moved(state, slope, step=step)
        assert torch.allclose(state[0], parameter.detach(), rtol=1e-12)


def own_answers(model, inputs):
    """Return a loss that is least where the model answers as it does with all its heads."""
    with torch.no_grad():
        answers = model(**inputs).logits.log_softmax(-1)

    def loss(outputs, batch):
        wanted = answers[batch.indices]
        found = kl_div(
            outputs.logits.log_softmax(-1), wanted, log_target=True, reduction="none"
        )
        return found.sum(-1).flatten(1).mean(1)

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
def test_a_head_that_does_nothing_is_worth_least(name):
    model, inputs = useful(name)
    anatomy = hp.inspect(model)
    useless = {site.heads[site.layer % 3] for site in anatomy.sites}
    with torch.no_grad():
        for site in anatomy.sites:
            first = site.heads[site.layer % 3].head * site.head_dim
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
