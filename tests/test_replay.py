"""Replay skips what a mask can't change, and falls back where that wouldn't be exact."""

import pytest
import torch
from families import build, token_inputs

import headprune as hp
from headprune import replay
from headprune.batch import Batch, as_batches
from headprune.errors import DataError, ModelError
from headprune.masking import gated


def loss(outputs, batch):
    return outputs[0].flatten(1).square().mean(1)


def listen(modules, rows):
    """Return a list that the index of a module is put on whenever it runs on so many rows."""
    ran = []
    for index, module in enumerate(modules):
        module.register_forward_pre_hook(
            lambda _module, args, index=index: ran.append(index) if len(args[0]) == rows else None
        )
    return ran


def test_only_what_a_mask_can_change_is_run(bert):
    """Nothing before the first difference, and not that attention either; rows tell the batch from the trial before it."""
    anatomy = hp.inspect(bert)
    layers = bert.bert.encoder.layer
    queried = listen([layer.attention.self.query for layer in layers], rows=5)
    fed = listen([layer.intermediate for layer in layers], rows=5)
    mask = torch.ones(1, 18)
    mask[0, 7] = 0
    batches = as_batches([token_inputs(rows=5)])
    replay.losses(bert, anatomy, batches=batches, loss=loss, masks=mask)
    assert queried == [0, 1, 2, 2]
    assert fed == [0, 1, 2, 1, 2]


def test_a_model_that_replay_would_get_wrong_runs_in_full(bert):
    """A last layer that reads an earlier one behind replay's back."""
    anatomy = hp.inspect(bert)
    layers = bert.bert.encoder.layer
    seen = {}
    original = layers[0].attention.forward

    def note(*args, **kwargs):
        result = original(*args, **kwargs)
        seen["value"] = result[0] if isinstance(result, tuple) else result
        return result

    layers[0].attention.forward = note
    layers[2].register_forward_hook(
        lambda _m, _a, out: (
            (out[0] + seen["value"].mean(), *out[1:])
            if isinstance(out, tuple)
            else out + seen["value"].mean()
        )
    )
    masks = 1 - torch.eye(18)
    batches = as_batches([token_inputs()])
    found = replay.losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    for mask, row in zip(masks, found, strict=True):
        with torch.no_grad(), gated(bert, anatomy, gates=mask):
            assert torch.allclose(loss(bert(**token_inputs()), batches[0]), row, atol=1e-5)


def test_a_site_that_is_never_called_is_an_error(bert):
    anatomy = hp.inspect(bert)
    layer = bert.bert.encoder.layer[1].attention.output
    dense = layer.dense
    layer.forward = lambda hidden, residual: layer.LayerNorm(
        torch.nn.functional.linear(hidden, dense.weight, dense.bias) + residual
    )
    with (
        pytest.raises(ModelError, match="were not masked"),
        gated(bert, anatomy, gates=torch.ones(18)),
    ):
        bert(**token_inputs())


def test_hooks_are_gone_after_an_error(bert):
    with pytest.raises(ZeroDivisionError), hp.masked(bert, ["L0.H0"]):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in bert.modules())


def test_every_row_may_have_its_own_mask(bert):
    inputs = token_inputs()
    gates = torch.tensor([[0.0, 1, 1, 1, 1, 1], [1] * 6, [1, 1, 1, 0, 1, 1], [1] * 6])
    with torch.no_grad():
        with hp.masked(bert, {"L1": gates}):
            together = bert(**inputs)[0]
        for row, removed in enumerate(([0], [], [3], [])):
            with hp.masked(bert, {"L1": removed}):
                assert torch.allclose(together[row], bert(**inputs)[0][row], atol=1e-6)


def test_gates_that_fit_no_row_are_refused(bert):
    with pytest.raises(ModelError, match="4 rows"), hp.masked(bert, {"L1": torch.ones(3, 6)}):
        bert(**token_inputs())


def test_no_data_is_an_error():
    with pytest.raises(DataError, match="no data"):
        as_batches([])
    with pytest.raises(DataError, match="no inputs"):
        as_batches([{"labels": torch.zeros(2)}])


def test_losses_come_back_in_the_order_of_the_data():
    model = build("bert")
    anatomy = hp.inspect(model)
    whole = as_batches([token_inputs(rows=6)])[0]
    parts = [
        Batch(
            {name: value[rows] for name, value in whole.inputs.items()},
            whole.targets[rows],
            torch.arange(len(rows)),
            torch.tensor(rows),
        )
        for rows in ([4, 1], [0, 5, 3], [2])
    ]
    masks = torch.ones(1, 18)
    masks[0, 0] = 0
    one = replay.losses(model, anatomy, batches=[whole], loss=loss, masks=masks)
    many = replay.losses(model, anatomy, batches=parts, loss=loss, masks=masks)
    assert torch.allclose(one, many, atol=1e-5)
