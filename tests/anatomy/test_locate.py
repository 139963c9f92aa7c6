"""Names of attentions, and how one of a small copy is found in the real model: without running either."""

import pytest
from families import build

import headprune as hp
from headprune.anatomy.clone import quiet
from headprune.anatomy.locate import UNSEEN, locate, name_sites, template
from headprune.anatomy.probe import probe

NAMES = {
    "one stack": ({"bert.encoder.layer.0.attention.self": "L0", "bert.encoder.layer.11.attention.self": "L11"}),
    "no number": ({"attn": "L0"}),
    "two stacks": (
        {
            "model.encoder.layers.0.self_attn": "encoder.L0",
            "model.decoder.layers.0.self_attn": "decoder.L0",
            "model.decoder.layers.0.encoder_attn": "decoder.L0.cross",
        }
    ),
    "T5": (
        {
            "encoder.block.0.layer.0.SelfAttention": "encoder.L0",
            "decoder.block.0.layer.0.SelfAttention": "decoder.L0",
            "decoder.block.0.layer.1.EncDecAttention": "decoder.L0.cross",
        }
    ),
    "stages of blocks": (
        {
            "swin.encoder.layers.0.blocks.0.attention.self": "L0",
            "swin.encoder.layers.0.blocks.1.attention.self": "L1",
            "swin.encoder.layers.1.blocks.0.attention.self": "L2",
            "swin.encoder.layers.1.blocks.1.attention.self": "L3",
        }
    ),
    "towers": (
        {
            "vision_model.encoder.layers.0.self_attn": "vision_model.L0",
            "text_model.encoder.layers.0.self_attn": "text_model.L0",
        }
    ),
    "two of a kind in a block": (
        {
            "layers.0.temporal_attention.attention": "L0.temporal_attention",
            "layers.0.attention.attention": "L0.attention_attention",
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_name_says_stack_layer_and_kind(names):
    assert {path: str(site) for path, site in name_sites(list(names)).items()} == names


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_no_two_attentions_share_a_name_in_whatever_order_they_come(names):
    backwards = name_sites(list(reversed(names)))
    assert len({str(site) for site in backwards.values()}) == len(names)


def test_a_name_does_not_depend_on_what_stands_before_the_base_model():
    paths = ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]
    outer = [f"bert.{path}" for path in paths]
    assert list(name_sites(paths).values()) == list(name_sites(outer).values())


def test_a_template_stands_for_all_layers():
    assert template("h.3.attn") == template("h.11.attn") == "h.*.attn"
    assert template("layer3.attn") == "layer3.attn"


def test_a_deeper_and_wider_model_is_read_off_its_small_copy():
    with quiet():
        small = probe(build("bert", cls="BertModel"))
    model = build("bert", cls="BertModel", num_hidden_layers=5, hidden_size=96)
    anatomy = locate(model, small.patterns, {})
    assert [str(site.id) for site in anatomy.sites] == ["L0", "L1", "L2", "L3", "L4"]
    for site in anatomy.sites:
        assert site.head_dim * site.num_heads == 96
        for item in site.slices:
            size = model.get_parameter(item.parameter).shape[item.dim]
            assert item.size(range(site.num_heads)) == size


def test_what_is_like_nothing_in_the_copy_is_refused_with_the_reason():
    model = build("bert", cls="BertModel")
    with quiet():
        patterns = probe(model).patterns
    layer = model.encoder.layer[1].attention
    layer.self.__class__ = type("OtherAttention", (type(layer.self),), {})
    layer.self.num_attention_heads = 7
    located = locate(model, patterns, {})
    assert "encoder.layer.1.attention.self" in located.refused
    assert "OtherAttention" in located.refused["encoder.layer.1.attention.self"]
    assert locate(model, (), {}).refused["encoder.layer.0.attention.self"] == UNSEEN


def test_reasons_of_a_small_copy_hold_for_every_layer():
    model = build("bert", cls="BertModel")
    refused = locate(model, (), {"encoder.layer.0.attention.self": "because"}).refused
    assert {path: why for path, why in refused.items() if path.endswith("self")} == {
        f"encoder.layer.{index}.attention.self": "because"
        for index in range(model.config.num_hidden_layers)
    }


def test_a_pruned_model_keeps_the_names_of_what_is_left():
    model = build("bert", cls="BertModel")
    hp.prune(model, ["L1.H0"])
    with quiet():
        small = probe(model)
    site = next(s for s in locate(model, small.patterns, {}).sites if str(s.id) == "L1")
    assert site.num_heads == len(site.heads) + 1
    assert 0 not in site.heads
