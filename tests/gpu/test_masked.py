"""`hp.masked` takes every form of heads, wherever its tensors lie."""

import pytest
import torch
from families import build, inspected, token_inputs

import headprune as hp
from gpu.subjects import plain
from headprune.errors import PlanError
from headprune.plans import PruningPlan


def _forms(anatomy, device):
    gates = torch.ones(4, 6)
    gates[:, [1, 3]] = 0
    whole = torch.ones(len(anatomy.heads))
    whole[[1, 3]] = 0
    removed = [anatomy.heads[1], anatomy.heads[3]]
    return {
        "names": ["L0.H1", "L0.H3"],
        "ids": removed,
        "indices": {"L0": [1, 3]},
        "mask": anatomy.mask(removed),
        "plan": PruningPlan(remove=tuple(removed), kept_per_site={"L0": 4}),
        "tensor": whole.to(device),
        "tensor on the cpu": whole,
        "a row each": whole.expand(4, -1).to(device),
        "a site": {"L0": gates[0].to(device)},
        "a site, a row each": {"L0": gates.to(device)},
        "a site on the cpu": {"L0": gates},
        "tensors and lists": {"L0": gates.to(device), "L1": [], "L2": torch.ones(6)},
    }


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_all_forms_are_the_same(family, apart):
    model = build(family)
    anatomy = inspected(model)
    inputs = token_inputs()
    with torch.no_grad(), hp.masked(model, ["L0.H1", "L0.H3"], anatomy=anatomy):
        expected = plain(model, inputs).logits
    model.to(apart)
    moved = {name: value.to(apart) for name, value in inputs.items()}
    for name, form in _forms(anatomy, apart).items():
        with torch.no_grad(), hp.masked(model, form, anatomy=anatomy):
            found = plain(model, moved).logits.cpu()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), name


def test_rows_may_have_gates_of_their_own(apart):
    model = build("bert")
    anatomy = inspected(model)
    inputs = token_inputs()
    gates = torch.ones(4, 6)
    gates[2, 5] = 0
    with torch.no_grad():
        whole = plain(model, inputs).logits
        with hp.masked(model, ["L1.H5"], anatomy=anatomy):
            silent = plain(model, inputs).logits
    expected = torch.where(torch.arange(4)[:, None] == 2, silent, whole)
    model.to(apart)
    moved = {name: value.to(apart) for name, value in inputs.items()}
    with torch.no_grad(), hp.masked(model, {"L1": gates.to(apart)}, anatomy=anatomy):
        found = plain(model, moved).logits.cpu()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        (torch.ones(5), "the gates of the model have shape [5], expected [18] or [rows, 18]"),
        ({"L0": torch.ones(2, 5)}, "the gates of L0 have shape [2, 5], expected [6] or [2, 6]"),
        ({"L0": torch.ones(2, 6), "L1": torch.ones(3, 6)}, "expected [6] or [2, 6]"),
        ({"L9": torch.ones(2, 6)}, "no attention 'L9'"),
        ({"L0": torch.ones(2, 6), "L1": [6]}, "no head L1.H6"),
        ([hp.inspect(build("gpt2", n_head=8)).heads[-1]], "no head L2.H7"),
    ],
)
def test_gates_that_dont_fit_are_refused(heads, words, device):
    model = build("bert").to(device)
    with pytest.raises(PlanError) as refused, hp.masked(model, heads):
        pass
    assert words in str(refused.value)
