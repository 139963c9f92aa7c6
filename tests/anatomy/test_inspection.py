"""What is proven of the attentions that a small copy shows."""

import pytest
import transformers
from families import build

from headprune import inspection
from headprune.anatomy import probe
from headprune.anatomy.clone import quiet


def t5():
    config = transformers.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=3,
        num_heads=2,
        vocab_size=50,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


STACKS = {"bert": (lambda: build("bert"), 1), "llama": (lambda: build("llama"), 1), "t5": (t5, 3)}


@pytest.mark.parametrize(("make", "classes"), STACKS.values(), ids=STACKS)
def test_attentions_of_one_stack_are_one_class(make, classes):
    with quiet():
        patterns = probe(make()).patterns
    groups = inspection._by_class(patterns)
    assert len(groups) == classes
    assert sum(map(len, groups)) == len(patterns) > classes


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
