"""Biases created for reconstruction: zeros that change nothing, where a family knows them, and taken back where unused."""

import json
from functools import partial

import pytest
import torch
from families import build, real_outputs, sentences, token_inputs

import headprune as hp
from headprune.config import Settings
from headprune.surgery.reconstruct import add_zero_biases, remove_biases
from headprune.workflows.stepwise import check_settings

KNOW_THEM = ("llama", "qwen3")


def outputs_of(model):
    inputs = token_inputs()
    with torch.no_grad():
        return real_outputs(model(**inputs), inputs)


@pytest.mark.parametrize("family", KNOW_THEM)
def test_biases_of_zeros_change_nothing_and_go_with_their_heads(family):
    model = build(family)
    before = outputs_of(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    given = add_zero_biases(model, hp.inspect(model))
    assert torch.equal(outputs_of(model), before)
    assert sum(parameter.numel() for parameter in model.parameters()) == count + given.count
    anatomy = hp.inspect(model)
    assert all(f"{site.output}.bias" in given.names for site in anatomy.sites)
    with torch.no_grad():
        for name in given.names:
            model.get_parameter(name).normal_(0, 0.3)
    with hp.masked(model, ["L0.H0", "L0.H1"], anatomy=anatomy):
        masked = outputs_of(model)
    assert not torch.allclose(masked, before, atol=1e-2)
    hp.prune(model, ["L0.H0", "L0.H1"], anatomy=anatomy)
    assert torch.allclose(outputs_of(model), masked, atol=2e-4)


@pytest.mark.parametrize("family", KNOW_THEM)
def test_what_is_taken_back_was_never_there(family):
    model = build(family)
    before, config = dict(model.state_dict()), model.config.to_dict()
    remove_biases(model, add_zero_biases(model, hp.inspect(model)))
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "gpt2", "mistral", "qwen2"])
def test_others_have_them_or_know_none(family):
    model = build(family)
    names = list(model.state_dict())
    assert add_zero_biases(model, hp.inspect(model)) is None
    assert list(model.state_dict()) == names


def test_a_model_pruned_before_is_given_biases_of_its_size():
    model = build("llama")
    hp.prune(model, ["L0.H0", "L0.H1"])
    before = outputs_of(model)
    assert add_zero_biases(model, hp.inspect(model)) is not None
    assert torch.equal(outputs_of(model), before)
    hp.prune(model, ["L1.H0", "L1.H1"])


@pytest.fixture
def prune(run_here, tokenizer, command_line, monkeypatch):
    """Return a function that prunes a Llama: (exit code, stdout, stderr)."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(run_here / ".cache"))
    build("llama").save_pretrained("llama")
    tokenizer.save_pretrained("llama")
    (run_here / "prose.txt").write_text("\n".join(sentences(240, seed=1)))
    data = ("--data", "prose.txt", "--max-length", "16", "--method", "magnitude")
    return partial(command_line, "prune", "llama", *data, "--json")


HALF = ("--keep", "0.5")


def test_prune_creates_biases_where_it_is_allowed_to(prune, run_here):
    """Reconstructed with them, cut, saved as what the family reads, and reloaded."""
    code, out, err = prune(*HALF, "--reconstruct", "bias", "--allow-bias", "--out", "given")
    assert code == 0, err
    found = json.loads(out)
    assert found["reconstruct"]["kept"]["method"] == "bias"
    assert json.loads((run_here / "given" / "config.json").read_text())["attention_bias"]
    model = hp.load("given")
    biases = [p.detach() for name, p in model.named_parameters() if name.endswith("o_proj.bias")]
    assert len(biases) == 3
    assert any(float(bias.abs().max()) > 0 for bias in biases)


def test_cuts_are_looked_at_with_the_biases_that_prune_creates(prune, run_here):
    """Within a tolerance: each look creates them and takes them back, and the last cut keeps them."""
    tolerance = ("--max-drop", "100000%", "--num-samples", "20")
    code, out, err = prune(*tolerance, "--reconstruct", "bias", "--allow-bias", "--out", "given")
    assert code == 0, err
    looks = err.count("reconstructed (bias)")
    assert looks > 1
    assert json.loads(out)["reconstruct"]["kept"]["method"] == "bias"
    biases = [name for name in hp.load("given").state_dict() if name.endswith("o_proj.bias")]
    assert len(biases) == 3


def test_prune_takes_biases_back_that_nothing_moved(prune, run_here):
    code, _out, err = prune(*HALF, "--reconstruct", "scale", "--allow-bias", "--out", "scaled")
    assert code == 0, err
    assert not json.loads((run_here / "scaled" / "config.json").read_text())["attention_bias"]
    assert not [name for name in hp.load("scaled").state_dict() if name.endswith("bias")]


def test_a_bias_is_allowed_not_asked_for():
    """So that a recipe of others that allows one goes with any other setting."""
    for said in ({"reconstruct": "none", "keep": 0.5}, {"max_drop": "1%"}):
        check_settings(Settings.of(recipe="flap", **said))
