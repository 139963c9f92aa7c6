"""What an encoder-decoder's decoder is given where labels are: what the model itself makes of them."""

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import headprune as hp
from headprune.batch import as_batches, with_decoder_inputs
from headprune.errors import DataError

SIZES = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "init_std": 0.4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Bart": ("BartConfig", SIZES, "BartForConditionalGeneration"),
    "MBart": ("MBartConfig", SIZES, "MBartForConditionalGeneration"),
    "Marian": ("MarianConfig", SIZES, "MarianMTModel"),
    "Pegasus": ("PegasusConfig", SIZES, "PegasusForConditionalGeneration"),
    "T5": ("T5Config", T5, "T5ForConditionalGeneration"),
    "MT5": ("MT5Config", T5, "MT5ForConditionalGeneration"),
    "Whisper": (
        "WhisperConfig",
        {**SIZES, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64},
        "WhisperForConditionalGeneration",
    ),
}


BERT = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40,
    "initializer_range": 0.4,
}  # fmt: skip
FAMILIES["EncoderDecoder"] = (
    "",
    BERT,
    "EncoderDecoderModel",
)  # it hides the pad tokens of its labels itself


def model_of(family):
    config, settings, name = FAMILIES[family]
    torch.manual_seed(0)
    if family == "EncoderDecoder":
        sides = [
            transformers.BertConfig(**settings, is_decoder=last, add_cross_attention=last)
            for last in (False, True)
        ]
        made = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            *sides, pad_token_id=0, decoder_start_token_id=0
        )
        return transformers.EncoderDecoderModel(made).eval()
    made = getattr(transformers, name)._from_config(getattr(transformers, config)(**settings))
    return made.eval()


def batch_for(family, padded=False):
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(7, 90, (3, 9), generator=generator) for _ in range(2))
    if padded:
        labels[1, 6:] = -100
    if family == "Whisper":
        return {"input_features": torch.randn(3, 8, 32, generator=generator), "labels": labels}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def by_token(outputs, batch):
    losses = cross_entropy(outputs.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return losses.view(batch.targets.shape).sum(1) / (batch.targets != -100).sum(1)


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # of EncoderDecoderModel
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_model_s_own(family, padded):
    model, batch = model_of(family), batch_for(family, padded)
    (given,) = with_decoder_inputs(model, [batch])
    with torch.no_grad():
        own = model(**batch)
        logits = model(**{name: value for name, value in given.items() if name != "labels"}).logits
    assert torch.allclose(logits, own.logits, atol=1e-6)
    (again,) = with_decoder_inputs(model, [given])
    assert again is given, "what the user gives stays"


def test_scores_of_an_encoder_decoder_are_made_with_them():
    model, batch = model_of("Bart"), batch_for("Bart")
    (given,) = with_decoder_inputs(model, [batch])
    scores = [hp.score(model, [one], loss=by_token, method="gradient") for one in (batch, given)]
    assert scores[0].values == scores[1].values
    first = {**given, "decoder_input_ids": given["input_ids"]}
    assert hp.score(model, [first], loss=by_token, method="gradient").values != scores[0].values


def test_labels_that_are_no_sequences_leave_the_decoder_alone():
    torch.manual_seed(0)
    config = transformers.BartConfig(**SIZES, num_labels=3)
    model = transformers.BartForSequenceClassification._from_config(config).eval()
    ids = torch.cat([batch_for("Bart")["input_ids"], torch.full((3, 1), 2)], 1)
    batch = {"input_ids": ids, "labels": torch.arange(3)}
    (given,) = with_decoder_inputs(model, [batch])
    assert given is batch


def test_what_the_model_makes_nothing_of_is_refused():
    model, batch = model_of("Bart"), batch_for("Bart")
    with pytest.raises(DataError, match="makes no decoder inputs") as caught:
        list(with_decoder_inputs(model, [{"labels": batch["labels"]}]))
    assert "decoder_input_ids" in caught.value.hint


def test_a_batch_reads_like_the_mapping_that_was_given():
    given = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor([1, 0])}
    (batch,) = as_batches([given])
    assert all(torch.equal(batch[name], value) for name, value in given.items())
    assert batch["labels"] is batch.targets
