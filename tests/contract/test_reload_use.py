"""A model that was loaded is a model like any other: it copies, switches attention, compiles, exports, trains, takes adapters."""

import copy

import pytest
import torch
from families import torch_compiles, written
from law import distance, outputs
from reload_cases import each, identical

import headprune as hp

ROUTES = ("transformers", "headprune")


def loss_of(model, inputs):
    """Return a number that depends on all of the model (of those that give a loss, not all take the same labels)."""
    torch.manual_seed(0)  # dropout
    return model(**inputs)[0].float().pow(2).mean()


def cut_parameters(case, model):
    """Return the parameters of attentions that lost heads and have some left."""
    return {
        item.parameter: model.get_parameter(item.parameter)
        for site in case.anatomy.sites
        if 0 < len(site.heads) < site.num_heads
        for item in site.cut_slices()
    }


@each()
def test_a_deep_copy_and_a_state_dict_carry_it_all(case):
    expected = outputs(case.model, case.inputs)
    for by in ROUTES:
        model = case.load(by)
        assert identical(outputs(copy.deepcopy(model), case.inputs), expected)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        missing, unexpected = model.load_state_dict(state)
        assert not missing
        assert not unexpected
        assert identical(outputs(model, case.inputs), expected)


@each()
def test_attention_can_be_switched(case):
    model = case.load()
    if not model._supports_sdpa:
        pytest.skip("transformers has only the eager attention of this family")
    found = {}
    for name in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(name)
        again = outputs(model, case.inputs)
        assert identical(again, found.setdefault(name, again))
    assert distance(found["sdpa"], found["eager"]) <= 1e-5
    assert distance(found["sdpa"], outputs(case.model, case.inputs)) <= 1e-5


@torch_compiles
@each("bert", "llama", "llama-stock", "t5", "bloom")
def test_export(case):
    model = case.load()
    exported = torch.export.export(model, args=(), kwargs=case.inputs).module()
    assert distance(outputs(exported, case.inputs), outputs(case.model, case.inputs)) <= 1e-6


@torch_compiles
@pytest.mark.filterwarnings(
    # transformers' GELU of BLOOM, as torch.compile traces it, pruned or not.
    "ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"
)
@each("bert", "llama", "gpt2", "t5", "bloom")
def test_compiled(case):
    torch._dynamo.reset()
    model = case.load()
    compiled = torch.compile(model, backend="eager")
    assert distance(outputs(compiled, case.inputs), outputs(case.model, case.inputs)) <= 1e-6


@each()
def test_a_training_step_and_saving_again(case, tmp_path):
    for by in ROUTES:
        model = case.load(by)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        before = loss_of(model, case.inputs)
        before.backward()
        for name, parameter in cut_parameters(case, model).items():
            assert parameter.grad is not None, name
            assert parameter.grad.shape == parameter.shape
        gradients = [p.grad for n, p in cut_parameters(case, model).items() if n.endswith("weight")]
        assert sum(bool(g.abs().sum() > 0) for g in gradients) >= len(gradients) - 1, by
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        assert loss_of(model, case.inputs) < before
        expected = outputs(model, case.inputs)
        case.save(model, tmp_path / by)
        model.save_pretrained(tmp_path / f"{by}-plain")
        assert identical(outputs(case.load(directory=tmp_path / by), case.inputs), expected)
        for again in ROUTES:
            loaded = case.load(again, tmp_path / f"{by}-plain")
            assert identical(outputs(loaded, case.inputs), expected)


@each()
def test_gradient_checkpointing_changes_nothing(case):
    model = case.load().train()
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers has no checkpoints for this family")
    plain = loss_of(model, case.inputs)
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in cut_parameters(case, model).items()}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    again = loss_of(model, case.inputs)
    again.backward()
    assert again == plain
    for name, parameter in cut_parameters(case, model).items():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-5, rtol=1e-4), name


@each("bert", "llama", "t5")
def test_pruned_again_it_is_not_saved_by_old_sizes(case, tmp_path):
    """``save_pretrained`` knows the new sizes as ``hp.save`` does."""
    model = case.load()
    site = next(site for site in case.anatomy.sites if len(site.groups(site.heads)) > 1)
    gone = [f"{site.id}.H{head}" for head in next(iter(site.groups(site.heads).values()))]
    hp.prune(model, gone)
    model.save_pretrained(tmp_path / "plain")
    written(model, tmp_path / "saved")
    for by in ROUTES:
        for folder in ("plain", "saved"):
            again = case.load(by, tmp_path / folder)
            assert identical(outputs(again, case.inputs), outputs(model, case.inputs))
