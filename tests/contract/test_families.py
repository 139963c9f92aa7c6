"""What every supported architecture must do, whatever its layout."""

import random

import pytest
import torch
from families import DECODERS, FAMILIES, GROUPED, build, real_outputs, token_inputs, written

import headprune as hp
from headprune.anatomy.clone import quiet
from headprune.errors import PlanError
from headprune.models.load import load


def random_plan(anatomy, seed):
    """Return heads to remove: different in every layer, lawful, now and then a whole layer."""
    rng = random.Random(seed)
    removed = []
    for site in anatomy.sites:
        groups = list(site.groups(site.heads).values())
        choice = rng.random()
        if choice < 0.15 and site.min_heads == 0:
            gone = set(site.heads)
        elif site.group_size > 1 and choice < 0.5:
            per_group = rng.randrange(site.group_size)
            gone = {head for group in groups for head in rng.sample(group, per_group)}
        elif site.group_size > 1:
            gone = {
                head for group in rng.sample(groups, rng.randrange(len(groups))) for head in group
            }
        else:
            gone = set(rng.sample(site.heads, rng.randrange(len(site.heads))))
        removed += [f"{site.id}.H{head}" for head in sorted(gone)]
    return removed


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masked_equals_pruned_for_random_uneven_plans(family, attention):
    inputs = token_inputs()
    anatomy = hp.inspect(build(family))
    moved = 0.0
    for seed in range(20):
        removed = random_plan(anatomy, seed)
        model = build(family, attention=attention)
        with torch.no_grad():
            plain = real_outputs(model(**inputs), inputs)
            with hp.masked(model, removed, anatomy=anatomy):
                masked = real_outputs(model(**inputs), inputs)
            hp.prune(model, removed, anatomy=anatomy)
            pruned = real_outputs(model(**inputs), inputs)
        assert (masked - pruned).abs().max() <= 1e-5 * max(1.0, masked.abs().max())
        moved = max(moved, float((masked - plain).abs().max()))
    assert moved > 0.1, "masking moved nothing, so equality proves nothing"


def test_a_mask_of_ones_reproduces_the_plain_output(family):
    model, inputs = build(family), token_inputs()
    with torch.no_grad():
        plain = model(**inputs)[0]
        with hp.masked(model, []):
            assert torch.equal(model(**inputs)[0], plain)
        assert torch.equal(model(**inputs)[0], plain)


def test_pruning_twice_equals_pruning_once(family):
    anatomy = hp.inspect(build(family))
    step = anatomy.sites[0].group_size
    first = [f"L0.H{head}" for head in range(step)]
    second = [f"L0.H{head}" for head in range(2 * step, 3 * step)] + [
        f"L2.H{h}" for h in range(step)
    ]
    twice, once = build(family), build(family)
    hp.prune(hp.prune(twice, first), second)
    hp.prune(once, first + second)
    assert twice.config.headprune == once.config.headprune
    for (name, one), (other_name, other) in zip(
        twice.named_parameters(), once.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other), name


def test_a_reload_is_bit_identical(family, tmp_path):
    model, inputs = build(family), token_inputs()
    anatomy = hp.inspect(model)
    hp.prune(model, random_plan(anatomy, 3), anatomy=anatomy)
    with torch.no_grad():
        expected = model(**inputs)[0]
    assert written(model, tmp_path / "saved") == "remote-code"
    again = load(tmp_path / "saved", device="cpu")
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], expected)
    # And once more, from the model that was loaded.
    written(again, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again", device="cpu")(**inputs)[0], expected)


def test_heads_keep_their_names_after_a_reload(family, tmp_path):
    model = build(family)
    step = hp.inspect(model).sites[0].group_size
    gone = [f"L1.H{head}" for head in range(step)]
    hp.prune(model, gone)
    written(model, tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    left = {str(head) for head in hp.inspect(again).heads}
    assert left.isdisjoint(gone)
    assert f"L1.H{step}" in left
    with pytest.raises(PlanError, match=r"has no head L1\.H0"):
        hp.prune(again, ["L1.H0"])


def test_nothing_else_changes(family):
    model = build(family).to(torch.bfloat16)
    frozen = next(name for name, p in model.named_parameters() if p.dim() == 2)
    model.get_parameter(frozen).requires_grad_(False)
    before = {name: (p.dtype, p.requires_grad, id(p)) for name, p in model.named_parameters()}
    anatomy = hp.inspect(model)
    cut = {item.parameter for item in anatomy.sites[0].slices}
    state = torch.random.get_rng_state()
    hp.prune(model, [f"L0.H{head}" for head in range(anatomy.sites[0].group_size)])
    assert torch.equal(torch.random.get_rng_state(), state)
    after = {name: (p.dtype, p.requires_grad, id(p)) for name, p in model.named_parameters()}
    assert before.keys() == after.keys()
    for name in before:
        assert before[name][:2] == after[name][:2], name
        assert (before[name] == after[name]) == (name not in cut), name


@pytest.mark.parametrize("family", DECODERS)
def test_generation_with_a_cache_says_what_the_masked_model_says(family):
    inputs = token_inputs(rows=1, length=6)
    anatomy = hp.inspect(build(family))
    removed = random_plan(anatomy, 5)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    model = build(family)
    with torch.no_grad(), quiet():
        with hp.masked(model, removed, anatomy=anatomy):
            masked = model.generate(**inputs, **settings, use_cache=False)
        hp.prune(model, removed, anatomy=anatomy)
        assert torch.equal(model.generate(**inputs, **settings, use_cache=True), masked)


@pytest.mark.parametrize("family", GROUPED)
def test_ragged_groups_are_refused_and_nothing_is_touched(family):
    model = build(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(PlanError, match="query heads") as caught:
        hp.prune(model, ["L0.H0", "L0.H1", "L1.H0"])
    assert "`gqa`" in caught.value.hint
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not hasattr(model.config, "headprune")


@pytest.mark.parametrize("family", GROUPED)
@pytest.mark.parametrize("heads_left", [6, 4])
def test_a_uniform_plan_loads_as_a_stock_model(family, heads_left, tmp_path):
    import transformers

    model, inputs = build(family), token_inputs()
    gone = {6: [0, 1], 4: [0, 1, 4, 5]}[heads_left]
    hp.prune(model, {f"L{layer}": gone for layer in range(3)})
    with torch.no_grad():
        expected = model(**inputs)[0]
    assert written(model, tmp_path / "saved") == "stock"
    assert not list((tmp_path / "saved").glob("*.py"))
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs)[0], expected)
    # The names are remembered all the same: heads can't be removed twice.
    names = {str(head) for head in hp.inspect(plain).heads}
    assert "L0.H0" not in names
    assert len(names) == 3 * heads_left
    hp.prune(plain, ["L0.H2", "L0.H3"])


def test_every_family_of_the_contract_is_built_as_it_says():
    for name in FAMILIES:
        model = build(name)
        assert model.config.model_type == name
        assert len(hp.inspect(model).heads) == 3 * model.config.num_attention_heads
