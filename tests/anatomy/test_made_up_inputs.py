"""Made-up inputs: what a forward accepts, in the sizes that its config names. The sizes stand here by hand."""

import inspect

import pytest
import torch
import transformers
from families import build
from transformers import PreTrainedConfig

from headprune.anatomy.exceptions import OPTIONAL_INPUTS, REQUIRED_INPUTS
from headprune.anatomy.inputs import InputTensors, example_inputs


def made(cls, **settings):
    kind = getattr(transformers, cls)
    torch.manual_seed(0)
    return kind(kind.config_class(**settings)).eval()


def shapes(inputs):
    return {n: tuple(v.shape) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


TEXT = {"input_ids": (2, 16), "attention_mask": (2, 16)}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_model_of_text_gets_tokens_of_its_vocabulary_and_a_padded_row(family):
    model = build(family)
    inputs = example_inputs(model)
    assert shapes(inputs).items() >= TEXT.items()
    assert int(inputs["input_ids"].max()) < model.config.vocab_size
    assert inputs["attention_mask"].sum().item() == 2 * 16 - 3
    assert inputs.get("use_cache", False) is False


def test_an_encoder_decoder_gets_both():
    model = made("T5Model", d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50,
                 decoder_start_token_id=0)  # fmt: skip
    inputs = example_inputs(model, rows=3, length=14)
    assert shapes(inputs)["decoder_input_ids"] == shapes(inputs)["input_ids"] == (3, 14)


def test_images_and_sound_come_in_the_sizes_of_the_config():
    vit = made("ViTModel", image_size=24, patch_size=8, hidden_size=16, num_attention_heads=2,
               num_hidden_layers=1, intermediate_size=16, num_channels=1)  # fmt: skip
    assert shapes(example_inputs(vit)) == {"pixel_values": (2, 1, 24, 24)}
    whisper = made("WhisperModel", d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, num_mel_bins=12, max_source_positions=20, vocab_size=50,
                   encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                   decoder_start_token_id=1)  # fmt: skip
    given = shapes(example_inputs(whisper))
    assert given["input_features"] == (2, 12, 40)
    assert given["decoder_input_ids"] == (2, 16)


def test_the_same_seed_gives_the_same_inputs_and_another_does_not():
    model = build("bert")
    one, again, other = (example_inputs(model, seed=seed)["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class _Any(transformers.PreTrainedModel):
    """A model whose forward asks for whatever a test names."""

    config_class = PreTrainedConfig

    def __init__(self, config, **parameters):
        super().__init__(config)
        kinds = {None: inspect.Parameter.empty}
        self.forward = lambda **kwargs: kwargs
        self.forward.__signature__ = inspect.Signature(
            [
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=kinds.get(default, default)
                )
                for name, default in parameters.items()
            ]
        )


SIZES = {
    "hidden_size": 12, "d_model": 12, "visual_feat_dim": 6, "state_dim": 5, "act_dim": 3, "latent_query_num": 4,
    "input_feat_size": 7, "num_time_features": 2, "vocab_size": 90, "image_size": 16, "patch_size": 8, "context_length": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", [*OPTIONAL_INPUTS, *REQUIRED_INPUTS])
def test_every_row_of_the_tables_gives_rows(name):
    """A name that is mistyped in a row fails here, not in front of one family alone."""
    config = PreTrainedConfig(**SIZES)
    needs = {"attention_mask": {"input_ids": 0}, "cross_attention_mask": {"aspect_ratio_ids": 0},
             "hidden_states": {"grid_thw": 0}}.get(name, {})  # fmt: skip
    patches = {"spatial_shapes": 0} if name == "pixel_attention_mask" else {}
    tensors = InputTensors(
        _Any(config, **{name: None}, **needs, **patches), rows=2, length=10, seed=0
    )
    if name == "encoder_hidden_states":
        config.add_cross_attention = True
    if name == "inputs":
        config.model_type = "perceiver"
    value = {**REQUIRED_INPUTS, **OPTIONAL_INPUTS}[name](tensors)
    if name == "use_cache":
        assert value is False
        return
    assert isinstance(value, torch.Tensor)
    assert value.shape[0] in (2, 2 * 16)


def test_what_has_a_default_is_left_out_unless_it_is_the_main_input():
    config = PreTrainedConfig(**SIZES)
    optional = InputTensors(_Any(config, inputs_embeds=0, states=0), rows=2, length=10, seed=0)
    from headprune.anatomy.inputs import forward_inputs

    assert shapes(forward_inputs(optional)) == {"states": (2, 10, 5)}
    required = InputTensors(_Any(config, inputs_embeds=None), rows=2, length=10, seed=0)
    assert shapes(forward_inputs(required)) == {"inputs_embeds": (2, 10, 12)}
