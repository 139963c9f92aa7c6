"""Scores of attentions that aren't an encoder's or a decoder's own: cross-attention, weights passed to a function."""

import pytest
import torch
import zoo
from test_methods import summaries

import headprune as hp


def seq2seq():
    model = zoo.build("t5", auto="AutoModelForSeq2SeqLM")
    inputs = {name: value for name, value in zoo.inputs(model).items() if torch.is_tensor(value)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    rows = len(inputs["input_ids"])
    batch = {**inputs, "labels": torch.zeros(rows, dtype=torch.long)}
    return model, batch, lambda outputs, _batch: outputs[0].flatten(1).square().mean(1)


@pytest.mark.parametrize("method", ["confidence", "entropy", "sink"])
def test_all_attentions_of_an_encoder_and_decoder_are_looked_at(method):
    model, batch, loss = seq2seq()
    scores = hp.score(model, [batch], loss=loss, method=method).by_head()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    kinds = {
        "encoder": out.encoder_attentions,
        "decoder": out.decoder_attentions,
        "cross": out.cross_attentions,
    }
    assert {head.site.kind for head in scores} == {"self", "cross"}
    for head, value in scores.items():
        kind = "cross" if head.site.kind == "cross" else head.site.stack
        weights = kinds[kind][head.site.layer][:, head.head].double()
        assert value == pytest.approx(summaries(weights)[method].mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    "method", ["gradient", "gradient:token", "fisher", "activation", "fluctuation"]
)
def test_weights_that_are_passed_to_a_function_make_no_difference(method):
    """WavLM passes its weights to a function; cut, it unfolds them. What is left scores as it did under a mask."""
    model = zoo.build("wavlm")
    inputs = zoo.inputs(model)
    rows = len(next(iter(inputs.values())))
    batch = {**inputs, "labels": torch.zeros(rows, dtype=torch.long)}
    anatomy = hp.inspect(model)
    gone = [str(anatomy.heads[0])]

    def loss(outputs, _batch):
        return outputs[0].flatten(1).square().mean(1)

    with hp.masked(model, gone, anatomy=anatomy):
        masked = hp.score(model, [batch], loss=loss, method=method, anatomy=anatomy).by_head()
    hp.prune(model, gone, anatomy=anatomy)
    pruned = hp.score(model, [batch], loss=loss, method=method).by_head()
    assert len(pruned) == len(masked) - 1
    largest = max(abs(value) for value in pruned.values())
    assert largest > 0
    for head, value in pruned.items():
        assert value == pytest.approx(masked[head], rel=1e-4, abs=1e-5 * largest)
