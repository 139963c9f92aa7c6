"""A config made small keeps what its numbers have to do with each other."""

from headprune.anatomy.shrink import common_scale, shrunk

BERT = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "pad_token_id": 0,
    "sep_token_id": 30000,
    "eos_token_id": 30001,
}


def test_heads_stay_and_widths_are_divided_by_one_number():
    small = shrunk(BERT, layers=2, widths=True)
    assert small["num_attention_heads"] == 12
    assert small["hidden_size"] / small["num_attention_heads"] == 8
    assert small["intermediate_size"] / small["hidden_size"] == 3072 / 768
    assert (small["num_hidden_layers"], small["vocab_size"]) == (2, 64)
    assert small["max_position_embeddings"] == 512
    assert small["hidden_dropout_prob"] == 0.1


def test_what_is_not_asked_to_shrink_does_not():
    small = shrunk(BERT, layers=None, widths=False)
    assert small["hidden_size"] == 768
    assert small["num_hidden_layers"] == 12


def test_special_tokens_stay_apart_and_inside_the_vocabulary():
    small = shrunk(BERT, layers=2, widths=True)
    ids = [value for name, value in small.items() if name.endswith("_token_id")]
    assert len(set(ids)) == len(ids)
    assert max(ids) < small["vocab_size"]


def test_parts_of_a_composite_config_share_one_scale():
    text = {"model_type": "a", "hidden_size": 512, "num_attention_heads": 8}
    vision = {
        "model_type": "b",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "projection_dim": 512,
    }
    small = shrunk({"text_config": text, "vision_config": vision}, layers=2, widths=True)
    assert small["text_config"]["hidden_size"] == small["vision_config"]["projection_dim"]
    assert small["vision_config"]["hidden_size"] == 2 * small["text_config"]["hidden_size"]


def test_a_width_that_no_number_divides_is_left_alone():
    odd = {"hidden_size": 4 * 9, "num_attention_heads": 4, "head_dim": 9}
    assert common_scale(odd) == 1
    assert shrunk(odd, layers=1, widths=True) == odd


def test_lists_by_layer_are_cut_and_stages_keep_their_number():
    by_layer = {"num_hidden_layers": 4, "layer_types": ["full", "sliding"] * 2, "hidden_size": 64}
    assert shrunk(by_layer, layers=2, widths=False)["layer_types"] == ["full", "sliding"]
    stages = {
        "depths": [2, 2, 18, 2],
        "num_layers": 4,
        "embed_dim": 96,
        "num_heads": [3, 6, 12, 24],
    }
    small = shrunk(stages, layers=2, widths=False)
    assert small["depths"] == [2, 2, 2, 2]
    assert small["num_heads"] == [3, 6, 12, 24]


def test_experts_and_rotary_sections_are_counted_down():
    settings = {
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "head_dim": 128,
        "num_local_experts": 128,
        "rope_parameters": {"mrope_section": [16, 24, 24], "rope_theta": 10000.0},
    }
    small = shrunk(settings, layers=2, widths=True)
    assert small["num_local_experts"] == 16
    scale = 128 // small["head_dim"]
    assert small["rope_parameters"]["mrope_section"] == [16 // scale, 24 // scale, 24 // scale]
    assert small["rope_parameters"]["rope_theta"] == 10000.0
