"""Key/value groups that would be left uneven are evened out with dead weight: exact, and any attention kernel runs it."""

import pytest
import torch
from families import build, real_outputs, token_inputs, written

import headprune as hp
from headprune.anatomy.clone import quiet
from headprune.errors import PlanError
from headprune.heads import SiteId

# Of two groups of four in each of three layers.
PLANS = {
    "three and one": ["L0.H3", "L0.H5", "L0.H6", "L0.H7"],
    "everywhere": ["L0.H0", "L1.H1", "L1.H4", "L1.H5", "L1.H7", "L2.H2", "L2.H3", "L2.H6"],
    "a group and a half": ["L1.H0", "L1.H1", "L1.H2", "L1.H3", "L1.H6", "L2.H4"],
    "even": ["L0.H0", "L0.H4", "L2.H3", "L2.H5"],
}


def make(**settings):
    return build("llama", **{"num_key_value_heads": 2, **settings})


def run(model, **settings):
    inputs = token_inputs(**settings)
    with torch.no_grad():
        return real_outputs(model(**inputs), inputs)


def close(one, other):
    return (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("removed", PLANS.values(), ids=PLANS)
def test_padded_is_masked(removed, attention, left):
    model = make(attention=attention)
    plain = run(model, left=left)
    with hp.masked(model, removed):
        masked = run(model, left=left)
    assert not close(plain, masked)
    hp.prune(model, removed, pad=True)
    assert close(run(model, left=left), masked)
    with pytest.raises(PlanError, match="has no head"):
        hp.prune(model, removed[:1])


def test_dead_weight_is_zero_and_named():
    model = make()
    hp.prune(model, PLANS["three and one"], pad=True)
    assert model.config.headprune["padding"] == ["L0.H5", "L0.H6"]
    site = hp.inspect(model).sites[0]
    assert site.heads == (0, 1, 2, 4)
    assert site.padding == (5, 6)
    attention = model.model.layers[0].self_attn
    width = site.head_dim
    assert attention.o_proj.in_features == 6 * width
    assert attention.k_proj.out_features == 2 * width
    assert not attention.q_proj.weight[4 * width :].any()
    assert not attention.o_proj.weight[:, 4 * width :].any()
    assert attention.q_proj.weight[: 4 * width].all()


@pytest.mark.parametrize("removed", PLANS.values(), ids=PLANS)
def test_a_reload_is_identical_and_remembers(removed, tmp_path):
    import transformers

    model = hp.prune(make(), removed, pad=True)
    route = written(model, tmp_path / "saved")
    expected, anatomy = run(model), hp.inspect(model)
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", trust_remote_code=route == "remote-code"
    ).eval()
    for again in (plain, hp.load(tmp_path / "saved", device="cpu")):
        assert torch.equal(run(again), expected)
        assert again.config.headprune.get("padding") == model.config.headprune.get("padding")
        assert hp.inspect(again).heads == anatomy.heads
        assert [site.padding for site in hp.inspect(again).sites] == [
            site.padding for site in anatomy.sites
        ]
        written(again, tmp_path / "again")
        assert torch.equal(run(hp.load(tmp_path / "again", device="cpu")), expected)


@pytest.mark.parametrize("reload", [False, True])
def test_pruning_again_equals_pruning_once(reload, tmp_path):
    """Also where padding goes, comes, or is no longer needed."""
    first, second = PLANS["three and one"], ["L0.H0", "L0.H1", "L1.H2", "L2.H0"]
    once = hp.prune(make(), [*first, *second], pad=True)
    twice = hp.prune(make(), first, pad=True)
    if reload:
        written(twice, tmp_path / "saved")
        twice = hp.load(tmp_path / "saved", device="cpu")
    hp.prune(twice, second, pad=True)
    assert close(run(twice), run(once))
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (twice, once)]
    assert shapes[0] == shapes[1]
    record = {n: x for n, x in twice.config.headprune.items() if n != "sites"}
    assert record == once.config.headprune
    whole = make()
    with hp.masked(whole, [*first, *second]):
        assert close(run(twice), run(whole))


@pytest.mark.parametrize("removed", PLANS.values(), ids=PLANS)
def test_generation_with_a_cache(removed, tmp_path):
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    inputs = token_inputs(rows=2, length=6, left=True)
    model = make()
    with torch.no_grad(), quiet():
        with hp.masked(model, removed):
            masked = model.generate(**inputs, **settings, use_cache=False)
        written(hp.prune(model, removed, pad=True), tmp_path / "saved")
        for each in (model, hp.load(tmp_path / "saved", device="cpu")):
            assert torch.equal(each.generate(**inputs, **settings, use_cache=True), masked)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("pad", [False, True])
def test_one_key_value_head_serves_any_number(count, pad, tmp_path):
    """Multi-query attention is never uneven, so nothing is ever padded; each layer loses another number of heads."""
    model = make(num_key_value_heads=1)
    removed = [f"L{layer}.H{head}" for layer in (0, 2) for head in range(count - layer // 2)]
    with hp.masked(model, removed):
        masked = run(model)
    hp.prune(model, removed, pad=pad)
    assert "padding" not in model.config.headprune
    assert close(run(model), masked)
    site = next(site for site in hp.inspect(model).sites if site.id == SiteId.parse("L0"))
    assert len(site.heads) == 8 - count
    written(model, tmp_path / "saved")
    assert torch.equal(run(hp.load(tmp_path / "saved", device="cpu")), run(model))
