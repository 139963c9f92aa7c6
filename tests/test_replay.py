"""Replay skips what a mask can't change, and falls back where that wouldn't be exact."""

import accelerate
import pytest
import torch
import transformers
from families import DECODERS, build, inspected, token_inputs
from torch.utils._python_dispatch import TorchDispatchMode

import headprune as hp
from headprune.batch import Batch, as_batches
from headprune.errors import DataError, ModelError
from headprune.masking import gated
from headprune.passes import RunContext
from headprune.replay.logits import example_losses
from headprune.replay.losses import in_chunks, losses
from headprune.replay.modes import find_modes
from headprune.tasks.task import get_task

BASES = {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}


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
    """Nothing before the attention in which a mask starts; rows tell the batch from the trial before it."""
    anatomy = inspected(bert)
    layers = bert.bert.encoder.layer
    queried = listen([layer.attention.self.query for layer in layers], rows=5)
    fed = listen([layer.intermediate for layer in layers], rows=5)
    mask = torch.ones(1, 18)
    mask[0, 7] = 0
    batches = as_batches([token_inputs(rows=5)])
    losses(bert, anatomy, batches=batches, loss=loss, masks=mask)
    assert queried == [0, 1, 2, 1, 2]
    assert fed == [0, 1, 2, 1, 2]


def test_a_model_that_replay_would_get_wrong_runs_in_full(bert):
    """A last layer that reads an earlier one behind replay's back."""
    anatomy = inspected(bert)
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
    found = losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    for mask, row in zip(masks, found, strict=True):
        with torch.no_grad(), gated(bert, anatomy, gates=mask):
            assert torch.allclose(loss(bert(**token_inputs()), batches[0]), row, atol=1e-5)


def test_a_site_that_is_never_called_is_an_error(bert):
    anatomy = inspected(bert)
    layer = bert.bert.encoder.layer[1].attention.output
    dense = layer.dense
    layer.forward = lambda hidden, residual: layer.LayerNorm(
        torch.nn.functional.linear(hidden, dense.weight, dense.bias) + residual
    )
    with (
        pytest.raises(ModelError, match="were not reached"),
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
    anatomy = inspected(model)
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
    one = losses(model, anatomy, batches=[whole], loss=loss, masks=masks)
    many = losses(model, anatomy, batches=parts, loss=loss, masks=masks)
    assert torch.allclose(one, many, atol=1e-5)


def brute(model, anatomy, batches, masks, loss):
    """Losses by one plain gated forward a mask."""
    found = torch.empty(len(masks), sum(batch.num_examples for batch in batches))
    for place, mask in enumerate(masks):
        for batch in batches:
            with torch.no_grad(), gated(model, anatomy, gates=mask):
                found[place, batch.indices] = loss(model(**batch.inputs), batch).float()
    return found


def modes_of(model, anatomy, batches, masks, loss):
    """Return how masks that start in an attention are run, site by site."""
    with torch.no_grad():
        return find_modes(model, anatomy, batches[0], loss, masks).by_site


def test_every_family_is_resumed_at_the_attention_that_masks_start_in(family):
    """The cheapest mode is taken, not fallen back from in silence."""
    model = build(family)
    anatomy = inspected(model)
    masks = 1 - torch.eye(len(anatomy.heads))
    modes = modes_of(model, anatomy, as_batches([token_inputs()]), masks, loss)
    assert set(modes.values()) == {"block"}


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_resumed_in_a_model_that_is_masked_already(family, seed):
    """What is recorded then is the masked model; heads that are silent stay so."""
    model = build(family)
    anatomy = inspected(model)
    generator = torch.Generator().manual_seed(seed)
    base, *masks = (torch.rand(5, len(anatomy.heads), generator=generator) > 0.3).float()
    masks = torch.stack([*masks, base, base.clone().fill_(1)])
    batches = as_batches([token_inputs(rows=3, seed=seed), token_inputs(rows=2, length=7)])
    with gated(model, anatomy, gates=base):
        found = losses(model, anatomy, batches=batches, loss=loss, masks=masks)
    expected = brute(model, anatomy, batches, masks * base, loss)
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


def first_token_loss(outputs, batch):
    return outputs[0][:, 0].square().mean(1)


def last_token_loss(outputs, batch):
    last = batch.inputs["attention_mask"].sum(1) - 1
    return outputs[0][torch.arange(len(last)), last].square().mean(1)


@pytest.mark.parametrize("wanted", [first_token_loss, last_token_loss])
def test_few_positions_of_each_row_are_exact_too(family, wanted):
    model = build(family, cls=None if family in DECODERS else BASES[family])
    anatomy = inspected(model)
    masks = torch.cat([1 - torch.eye(len(anatomy.heads)), torch.zeros(1, len(anatomy.heads))])
    masks[-1, 0] = 1
    batches = as_batches([token_inputs(rows=3), token_inputs(rows=2, seed=1, length=9)])
    found = losses(model, anatomy, batches=batches, loss=wanted, masks=masks)
    expected = brute(model, anatomy, batches, masks, wanted)
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("at_once", [1, 800, 10**9])
def test_losses_and_gradients_don_t_depend_on_how_many_logits_exist_at_once(family, at_once):
    model = build(family)
    task = get_task("causal-lm")
    inputs = token_inputs()
    batch = as_batches([{**inputs, "labels": inputs["attention_mask"].sum(1) - 1}])[0]
    head = model.get_output_embeddings()
    widths = []
    head.register_forward_hook(lambda _m, args, _o: widths.append(args[0].shape[:2].numel()))
    # Not a tied embedding: the gradient goes to activations, not to the head's own weight.
    weight = next(p for name, p in model.named_parameters() if ".0." in name and p.dim() == 2)
    values = example_losses(
        model, batch, task.loss, run=lambda: model(**batch.inputs), at_once=at_once
    )[0]
    (gradient,) = torch.autograd.grad((values * torch.arange(4.0)).sum(), weight)
    whole = task.loss(model(**batch.inputs), batch)
    (expected,) = torch.autograd.grad((whole * torch.arange(4.0)).sum(), weight)
    assert torch.allclose(values, whole, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-4 * expected.abs().max().item())
    assert max(widths[:-1]) == {1: 4, 800: 8, 10**9: 44}[at_once]


def test_what_a_model_does_with_its_logits_is_done_to_every_piece():
    """Gemma 2 bounds them: the head alone would give other losses."""
    config = transformers.Gemma2Config(
        vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.4, final_logit_softcapping=2.0,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    anatomy = inspected(model)
    inputs = token_inputs()
    batches = as_batches([{**inputs, "labels": inputs["attention_mask"].sum(1) - 1}])
    task = get_task("causal-lm")
    masks = 1 - torch.eye(len(anatomy.heads))
    found = losses(model, anatomy, batches=batches, loss=task.loss, masks=masks)
    assert torch.allclose(found, brute(model, anatomy, batches, masks, task.loss), atol=2e-5)
    scores = hp.score(model, batches, loss=task.loss, method="gradient", anatomy=anatomy)
    whole = hp.score(
        model, batches, loss=lambda o, b: task.loss(o, b), method="gradient", anatomy=anatomy
    )
    assert scores.values == pytest.approx(whole.values, rel=1e-4)


def test_a_forward_that_draws_random_numbers_is_run_mask_by_mask(bert):
    anatomy = inspected(bert)
    bert.bert.encoder.layer[1].register_forward_hook(
        lambda _m, _a, out: (out[0] + torch.rand(()), *out[1:]) if isinstance(out, tuple) else out + torch.rand(())
    )  # fmt: skip
    said = []
    masks = 1 - torch.eye(18)
    batches = as_batches([token_inputs()])
    modes = modes_of(bert, anatomy, batches, masks, loss)
    assert set(modes.values()) == {"plain"}
    losses(
        bert,
        anatomy,
        batches=batches,
        loss=loss,
        masks=masks,
        context=RunContext(notify=said.append),
    )
    assert "L0, L1, L2" in said[0]


def test_a_batch_whose_blocks_run_in_another_order_runs_in_full(bert):
    """Short rows go through the blocks backwards: what a mask of two blocks starts in is no longer where it started."""
    anatomy = inspected(bert)
    layers = bert.bert.encoder.layer

    def forward(hidden, attention_mask=None, **_settings):
        for layer in layers if hidden.shape[1] > 7 else reversed(layers):
            hidden = layer(hidden, attention_mask)
        return transformers.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(hidden)

    bert.bert.encoder.forward = forward
    masks = (torch.rand(12, 18, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    batches = as_batches([token_inputs(), token_inputs(rows=5, length=7)])
    found = losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    expected = brute(bert, anatomy, batches, masks, loss)
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_what_has_as_many_rows_as_the_batch_by_chance_is_no_row(bert):
    """A table of positions [length, width], in a batch of as many rows as positions: repeated, it would fit nothing."""
    anatomy = inspected(bert)
    bert.bert.table = torch.nn.Embedding(16, bert.config.hidden_size)
    torch.nn.init.normal_(bert.bert.table.weight)

    def add(_module, args, kwargs):
        positions = torch.arange(args[0].shape[1])
        return (args[0] + bert.bert.table(positions), *args[1:]), kwargs

    bert.bert.encoder.register_forward_pre_hook(add, with_kwargs=True)
    masks = 1 - torch.eye(18)
    batches = as_batches([token_inputs(), token_inputs(rows=7, length=7)])
    found = losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    expected = brute(bert, anatomy, batches, masks, loss)
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_modes_of_a_language_model_are_tried_on_few_positions():
    model = build("llama")
    anatomy = inspected(model)
    task = get_task("causal-lm")
    ids = token_inputs(rows=1, length=120)["input_ids"].view(3, 40)
    batches = as_batches(
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full((3,), 39)}]
    )
    masks = 1 - torch.eye(len(anatomy.heads))
    seen = []
    embedded = model.get_input_embeddings().register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape)
    )
    modes = modes_of(model, anatomy, batches, masks, task.loss)
    embedded.remove()
    assert set(modes.values()) == {"block"}
    assert {length for _rows, length in seen} == {16}
    found = losses(model, anatomy, batches=batches, loss=task.loss, masks=masks)
    expected = brute(model, anatomy, batches, masks, task.loss)
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_batch_is_not_shortened_to_padding():
    padded, whole = as_batches([token_inputs(), token_inputs(rows=1)])
    assert padded.start(10) is padded
    assert whole.start(9).num_tokens == 9 * whole.num_rows


def test_the_loop_waits_for_the_device_once_a_batch_not_once_a_head(bert):
    """Every ``.item()`` or ``.cpu()`` makes a GPU wait: their number is that of the batches, whatever the heads."""
    anatomy = inspected(bert)
    batches = as_batches([token_inputs(seed=seed) for seed in range(3)])

    def waits(count):
        masks = (1 - torch.eye(18))[:count]
        settings = {"batches": batches, "loss": loss, "masks": masks}
        losses(bert, anatomy, **settings)  # nothing is new the second time
        with Waits() as found:
            losses(bert, anatomy, **settings)
        return found.count

    # Heads of one attention, so that the trial of attentions before the loop is the same.
    assert waits(2) == waits(4) == waits(6)


class Waits(TorchDispatchMode):
    """Counts what would make a GPU wait: numbers read off a tensor, and sizes that hang on values."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
        ):
            type(self).count += 1
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        type(self).count = 0
        return super().__enter__()


@pytest.mark.parametrize("count", [0, 1])
def test_few_masks_have_few_losses(bert, count):
    """Of fewer masks than processes, some processes have none."""
    batches = as_batches([token_inputs()])
    masks = (1 - torch.eye(18))[:count]
    found = losses(bert, inspected(bert), batches=batches, loss=loss, masks=masks)
    assert found.shape == (count, 4)
    assert found.isfinite().all()


def test_memory_that_runs_out_halves_the_stack_and_nothing_is_done_twice():
    ran = []

    def run(masks):
        ran.append(len(masks))
        if len(masks) > 3:
            raise torch.OutOfMemoryError("too much")
        return masks * 2

    masks = torch.arange(10.0)[:, None]
    found, fitted = in_chunks(masks, 8, run)
    assert torch.equal(found, masks * 2)
    assert ran == [8, 4, 2, 2, 2, 2, 2]
    assert fitted == 2
    assert in_chunks(masks[:2], 8, run)[1] is None
    ran.clear()
    in_chunks(masks, 1_000_000, run)
    assert ran[0] == len(masks), "more than there are isn't tried"
    with pytest.raises(torch.OutOfMemoryError):  # whoever made the batch makes it smaller
        in_chunks(masks + 0, 8, lambda _masks: (_ for _ in ()).throw(torch.OutOfMemoryError("x")))


def test_compiled_blocks_run_and_give_the_same_losses(family, monkeypatch):
    """With a backend that takes no minutes; a mask's own block, and gated ones, stay as they are."""
    compiled, ran = [], set()

    def compile(function, **settings):
        place = len(compiled)
        compiled.append(torch_compile(function, backend="eager", **settings))
        return lambda *args, **kwargs: ran.add(place) or compiled[place](*args, **kwargs)

    torch_compile = torch.compile
    torch._dynamo.reset()  # other families' blocks count against its limit
    monkeypatch.setattr(torch, "compile", compile)
    model = build(family)
    anatomy = inspected(model)
    masks = 1 - torch.eye(len(anatomy.heads))
    batches = as_batches([token_inputs(), token_inputs(rows=2, length=7)])
    plain = losses(model, anatomy, batches=batches, loss=loss, masks=masks)
    found = losses(
        model, anatomy, batches=batches, loss=loss, masks=masks, context=RunContext(compile=True)
    )
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)
    assert len(compiled) == 3
    # All masks change the first block or start after it.
    assert 1 in ran
    assert 0 not in ran


def test_weights_that_wait_elsewhere_are_masked_all_the_same(bert):
    """accelerate brings each layer's weights when it runs, with forwards of its own."""
    anatomy = inspected(bert)
    masks = 1 - torch.eye(18)
    batches = as_batches([token_inputs()])
    plain = losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    accelerate.cpu_offload(bert, execution_device=torch.device("cpu"))
    assert set(modes_of(bert, anatomy, batches, masks, loss).values()) == {"block"}
    found = losses(bert, anatomy, batches=batches, loss=loss, masks=masks)
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_in_half_precision_replay_is_taken_where_it_is_right(family):
    model = build(family).to(torch.bfloat16)
    anatomy = inspected(model)
    masks = 1 - torch.eye(len(anatomy.heads))
    modes = modes_of(model, anatomy, as_batches([token_inputs()]), masks, loss)
    assert set(modes.values()) <= {"block"}


def test_in_half_precision_a_wrong_replay_is_seen(bert):
    """The last layer reads what the first one's attention put out, and a replay from the second one on would not give it that."""
    model = bert.to(torch.bfloat16)
    anatomy = inspected(model)
    seen = {}
    layers = model.bert.encoder.layer
    layers[0].attention.output.register_forward_hook(lambda _m, _a, out: seen.update(value=out))
    layers[2].register_forward_hook(
        lambda _m, _a, out: out + 3 * seen.pop("value") if "value" in seen else out
    )
    masks = 1 - torch.eye(18)
    modes = modes_of(model, anatomy, as_batches([token_inputs()]), masks, loss)
    by_name = {str(site.id): mode for site, mode in modes.items()}
    assert by_name["L1"] == by_name["L2"] == "stacked"


def hinge_of_last_token(outputs, batch):
    """No gradient in rows that are right by a margin."""
    last = batch.inputs["attention_mask"].sum(1) - 1
    return torch.relu(outputs[0][torch.arange(len(last)), last, 0] + batch.targets.float())


def test_a_row_without_gradient_is_measured_all_the_same():
    model = build("bert", cls="BertModel")
    anatomy = inspected(model)
    inputs = token_inputs(rows=4)
    with torch.no_grad():
        last = inputs["attention_mask"].sum(1) - 1
        firsts = model(**inputs)[0][torch.arange(4), last, 0]
    # Only the last row is just beyond its margin: silencing heads brings it back.
    labels = torch.tensor([5.0, 5.0, 5.0, 0.0])
    labels[3] = -firsts[3] - 1e-3
    batches = as_batches([{**inputs, "labels": labels}])
    masks = 1 - torch.eye(len(anatomy.heads))
    found = losses(model, anatomy, batches=batches, loss=hinge_of_last_token, masks=masks)
    expected = brute(model, anatomy, batches, masks, hinge_of_last_token)
    assert expected[:, 3].max() > 0
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_logits_that_are_changed_in_place_are_not_the_head_s_own():
    model = build("llama")
    task = get_task("causal-lm")
    inputs = token_inputs()
    batch = as_batches([{**inputs, "labels": inputs["attention_mask"].sum(1) - 1}])[0]

    def run():
        outputs = model(**batch.inputs)
        outputs.logits[:, :, 10:20] = -1e4
        return outputs

    with torch.no_grad():
        found = example_losses(model, batch, task.loss, run=run)[0]
        assert torch.allclose(found, task.loss(run(), batch), atol=1e-5)
