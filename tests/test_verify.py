"""The proofs bite: surgery that is broken on purpose is never let through."""

import pytest
import torch
from families import GROUPED, build, token_inputs

import headprune as hp
from headprune.anatomy.sites import Run, Slice
from headprune.errors import UnsupportedError
from headprune.verify import masked_equals_pruned, parameters_add_up, run

REMOVE = {
    "bert": ["L0.H1", "L0.H4", "L2.H0"],
    "gpt2": ["L0.H1", "L0.H4", "L2.H0"],
    "llama": ["L0.H2", "L0.H3", "L2.H0", "L2.H1"],
}


def first_slice(site, ending):
    return next(item for item in site.slices if item.parameter.endswith(ending))


def shifted(item, places):
    runs = item.runs[-places:] + item.runs[:-places]
    return Slice(item.parameter, item.dim, runs)


def broken(anatomy, change):
    """Return the anatomy with one slice of every site changed."""
    from dataclasses import replace

    sites = tuple(
        replace(site, slices=tuple(change(site, item) for item in site.slices))
        for site in anatomy.sites
    )
    return type(anatomy)(anatomy.model_type, sites, anatomy.refused)


MUTANTS = [
    (family, ending, places)
    for family, endings in {
        "bert": ("query.weight", "key.weight", "value.weight", "value.bias", "output.dense.weight"),
        "gpt2": ("c_attn.weight", "c_proj.weight"),
        "llama": ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"),
    }.items()
    for ending in endings
    for places in (1, 2)
]


@pytest.mark.parametrize(("family", "ending", "places"), MUTANTS)
def test_wrong_rows_never_pass(family, ending, places):
    model, inputs = build(family), token_inputs()
    anatomy = hp.inspect(model)

    def change(site, item):
        return shifted(item, places) if item.parameter.endswith(ending) else item

    with hp.masked(model, REMOVE[family], anatomy=anatomy):
        masked = run(model, inputs)
    hp.prune(model, REMOVE[family], anatomy=broken(anatomy, change))
    assert not masked_equals_pruned(masked, run(model, inputs), rows=4).passed


def test_right_rows_pass():
    for family, removed in REMOVE.items():
        model, inputs = build(family), token_inputs()
        with hp.masked(model, removed):
            masked = run(model, inputs)
        hp.prune(model, removed)
        proof = masked_equals_pruned(masked, run(model, inputs), rows=4)
        assert proof.passed, proof


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_that_is_not_a_number_passes(poison):
    good = torch.ones(2, 3)
    bad = good.clone()
    bad[0, 0] = poison
    assert not masked_equals_pruned(good, bad, rows=2).passed
    assert not masked_equals_pruned(bad, good, rows=2).passed
    assert not masked_equals_pruned(good, torch.ones(3, 2), rows=2).passed


def test_arithmetic_that_does_not_add_up_is_noticed(tmp_path):
    from headprune.planning.costs import savings

    model = build("bert")
    anatomy = hp.inspect(model)
    before = sum(p.numel() for p in model.parameters())
    removed = savings(model, anatomy, removed=[anatomy.heads[0]]).parameters
    assert removed == 8 * 48 * 4 + 3 * 8
    hp.prune(model, ["L0.H0"], anatomy=anatomy)
    hp.save(model, tmp_path / "out")
    assert parameters_add_up(
        before=before, removed=removed, directory=tmp_path / "out", model=model
    ).passed
    assert not parameters_add_up(
        before=before, removed=removed + 1, directory=tmp_path / "out", model=model
    ).passed
    other = build("bert")
    assert not parameters_add_up(
        before=before, removed=0, directory=tmp_path / "out", model=other
    ).passed


def of_real_size(config, cls, **settings):
    """Return a model of its config's default size, without memory."""
    import transformers

    with torch.device("meta"):
        return getattr(transformers, cls)(getattr(transformers, config)(**settings))


@pytest.mark.parametrize(
    ("config", "cls", "reason"),
    [
        ("MambaConfig", "MambaForCausalLM", "it has no attention heads"),
        ("DiffLlamaConfig", "DiffLlamaForCausalLM", "heads are pairs"),
        ("MraConfig", "MraForMaskedLM", "can't be told apart"),
    ],
)
def test_what_is_not_proven_is_refused_by_name_and_reason(config, cls, reason):
    model = of_real_size(config, cls)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        hp.inspect(model)
    assert model.config.model_type in caught.value.what


def test_packed_weights_are_refused_with_the_way_out():
    model = of_real_size("LlamaConfig", "LlamaForCausalLM", num_hidden_layers=2)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedError, match="quantised") as caught:
        hp.inspect(model)
    assert "dequantised" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "cls", "heads", "sites"),
    [
        ("AlbertConfig", "AlbertModel", 64, {"L0"}),
        ("T5Config", "T5ForConditionalGeneration", 144, {"encoder.L5", "decoder.L0.cross"}),
        ("BloomConfig", "BloomForCausalLM", 16, {"L1"}),
        ("ViTConfig", "ViTModel", 144, {"L11"}),
        ("Olmo2Config", "Olmo2ForCausalLM", 1024, {"L31"}),
        ("CLIPConfig", "CLIPModel", 240, {"text_model.L11", "vision_model.L0"}),
        ("WhisperConfig", "WhisperModel", 72, {"encoder.L3", "decoder.L3", "decoder.L3.cross"}),
        ("SwinConfig", "SwinModel", 138, {"L11"}),
        ("Qwen3NextConfig", "Qwen3NextForCausalLM", 192, {"L3", "L47"}),
    ],
)
def test_real_sizes_are_found_without_their_weights(config, cls, heads, sites):
    anatomy = hp.inspect(of_real_size(config, cls))
    assert len(anatomy.heads) == heads
    assert sites <= {str(site.id) for site in anatomy.sites}


def test_inspecting_moves_no_random_state_and_touches_no_weight(bert):
    before = {name: p.clone() for name, p in bert.named_parameters()}
    state = torch.random.get_rng_state()
    hp.inspect(bert)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in bert.named_parameters())


@pytest.mark.parametrize("family", GROUPED)
def test_groups_are_told_from_the_model(family):
    site = hp.inspect(build(family)).sites[1]
    assert (site.num_heads, site.num_key_value_heads, site.group_size) == (8, 4, 2)
    assert site.head_dim == (16 if family == "qwen3" else 4)
    key = first_slice(site, "k_proj.weight")
    assert key.runs[0] == Run((0, 1), site.head_dim)
