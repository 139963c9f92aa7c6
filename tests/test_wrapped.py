"""Something around a model: the model inside is used where that is exact, and named where it isn't."""

import pytest
import torch
import transformers
from families import build, token_inputs, toy_tokenizer

import headprune as hp
from headprune.errors import ModelError
from headprune.wrapped import unwrapped


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "compiled": (compiled, {"inspect", "score", "save"}, "model._orig_mod"),
    "parallel": (torch.nn.DataParallel, {"inspect", "score", "prune", "save"}, "model.module"),
    "both": (
        lambda model: compiled(torch.nn.DataParallel(model)),
        {"inspect", "score", "save"},
        "model._orig_mod.module",
    ),
}


@pytest.mark.parametrize(("wrap", "exact", "path"), WRAPPERS.values(), ids=WRAPPERS)
def test_the_model_inside_is_used_where_that_is_exact_and_named_elsewhere(wrap, exact, path):
    model = build("bert", cls="BertModel")
    given = wrap(model)
    for use in ("inspect", "score", "mask", "prune", "save"):
        if use in exact:
            assert unwrapped(given, use=use) is model
        else:
            with pytest.raises(ModelError) as refused:
                unwrapped(given, use=use)
            assert path in refused.value.hint


def test_a_parallel_model_is_pruned_inside_and_runs_on():
    model, whole = build("bert", cls="BertModel"), build("bert", cls="BertModel")
    given, inputs = torch.nn.DataParallel(model), token_inputs()
    remove = ["L0.H1", "L2.H3"]
    hp.prune(unwrapped(given, use="prune"), remove)
    with torch.no_grad(), hp.masked(whole, remove):
        expected = whole(**inputs).last_hidden_state
        torch.testing.assert_close(given(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_a_pipeline_is_masked_and_pruned_by_its_model():
    model = build("bert")
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=toy_tokenizer())
    model_inside = unwrapped(pipe, use="mask")
    assert model_inside is model
    before = pipe("w1 w2")
    with hp.masked(model_inside, ["L0.H0", "L1.H2"]):
        masked = pipe("w1 w2")
    assert masked != before
    hp.prune(unwrapped(pipe, use="prune"), ["L0.H0", "L1.H2"])
    assert pipe("w1 w2")[0]["score"] == pytest.approx(masked[0]["score"], abs=1e-6)
    with pytest.raises(ModelError, match="around"):
        unwrapped(pipe, use="score")
