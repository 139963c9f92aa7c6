"""How an architecture is proven: one stack of layers after the other, not one layer after the other."""

import pytest
import torch
from families import build
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from headprune import inspection
from headprune.anatomy.clone import quiet
from headprune.anatomy.probe import probe

SIZES = {"vocab_size": 96, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 3}
BERT = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4}


@pytest.mark.parametrize("layers", [3, 12])
def test_layers_of_a_stack_are_one_class(layers, monkeypatch):
    """Whatever the number of layers: none is a class of its own."""
    classes = []

    def recording(patterns):
        classes.append(inspection_by_class(patterns))
        return classes[-1]

    inspection_by_class = inspection._by_class
    monkeypatch.setattr(inspection, "_by_class", recording)
    # No method suits all classes at once, so that each is tried alone.
    settled = inspection._settled
    monkeypatch.setattr(
        inspection,
        "_settled",
        lambda probed, patterns, methods: (
            (None, 1.0) if patterns is probed.patterns else settled(probed, patterns, methods)
        ),
    )
    for model, stacks in (
        (BertForSequenceClassification(BertConfig(**BERT, num_hidden_layers=layers)), 1),
        (
            T5ForConditionalGeneration(
                T5Config(**SIZES, num_layers=layers, num_decoder_layers=layers)
            ),
            3,
        ),
    ):
        with torch.no_grad():
            anatomy = inspection.inspect(model)
        assert len(anatomy.sites) == layers * stacks
        assert len(classes.pop()) == stacks
        assert not classes


def test_what_can_be_cut_by_no_method_alone_is_refused_and_the_others_are_not(monkeypatch):
    """Layer 1 of the copy passes by no method: its class falls apart, and layer 0 keeps the best."""
    with quiet():
        probed = probe(build("bert", cls="BertModel"))
    difference = inspection._difference

    def spoilt(probed, patterns, plan):
        bad = any(".1." in pattern.path for pattern in patterns)
        return 1.0 if bad else difference(probed, patterns, plan)

    monkeypatch.setattr(inspection, "_difference", spoilt)
    patterns, refused = inspection._proven(probed)
    assert [pattern.path for pattern in patterns] == ["encoder.layer.0.attention.self"]
    assert patterns[0].execution == "native"
    assert "encoder.layer.1.attention.self" in refused
