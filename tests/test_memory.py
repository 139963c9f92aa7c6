"""Memory that runs out: the results are those of a machine with more of it, or the refusal says what would fit."""

from contextlib import contextmanager

import pytest
import torch
from families import build, inspected, score, token_inputs
from hypothesis import given
from hypothesis import strategies as st

from headprune.batch import Batch
from headprune.distillation.teacher import mean_distance
from headprune.errors import HeadpruneError, MemoryLimitError, UnprovenError
from headprune.evaluation import predict, predict_masked
from headprune.footprint import latency_ms, sizes
from headprune.passes import Parts, RunContext, attempt
from headprune.replay.losses import losses
from headprune.scoring.catalogue import METHODS
from headprune.scoring.gates import gradient as gates_gradient
from headprune.scoring.request import ScoreRequest
from headprune.surgery.fit import fit
from headprune.tasks.distill import CLASSES, TOKENS, with_teacher_targets
from headprune.tasks.task import get_task
from headprune.verify import masked_equals_pruned, run


@contextmanager
def memory_of(model, rows):
    """Let every forward of more rows than that end as it does on a device that is too small; yields the rows of all forwards."""
    ran = []

    def refuse(_module, _args, kwargs):
        ran.append(len(kwargs["input_ids"]))
        if ran[-1] > rows:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {ran[-1]} rows")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


def batches_of(model, sizes=(5, 8), *, seed=0):
    """Return batches of labelled rows of different lengths; their examples' places in the data are mixed."""
    total = sum(sizes)
    inputs = token_inputs(rows=total, length=10, seed=seed)
    # Of a language model: how many tokens are predicted.
    counts = inputs["attention_mask"][:, 1:].sum(1)
    targets = torch.arange(total) % 2 if model.config.model_type == "bert" else counts
    indices = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).split(sizes)
    return tuple(
        Batch(
            {name: value[order] for name, value in inputs.items()},
            targets[order],
            torch.arange(len(order)),
            order,
        )
        for order in indices
    )


def loss_of(family):
    return get_task("classification" if family == "bert" else "causal-lm").loss


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("magnitude", "random", "shapley", "gates")]
)
def test_scores_are_those_of_a_machine_with_more_memory(method, family):
    """Also of methods whose scores depend on batches: halves are put together before a batch's mean is taken."""
    model = build(family)
    anatomy, batches, loss = inspected(model), batches_of(model), loss_of(family)
    told = []
    expected = score(model, anatomy, batches=batches, loss=loss, method=method)
    with memory_of(model, 2) as ran:
        context = RunContext(notify=told.append)
        found = score(model, anatomy, batches=batches, loss=loss, method=method, context=context)
    assert max(ran) > 2, "memory never ran out"
    scale = max(map(abs, expected.values))
    assert torch.allclose(
        torch.tensor(found.values), torch.tensor(expected.values), rtol=0, atol=1e-5 * scale
    )
    assert any("memory ran out" in text for text in told)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_step_of_gates_is_the_same(family):
    """A step: what 200 of them make of the last digit is another matter."""
    model = build(family)
    anatomy, (batch, _other) = inspected(model), batches_of(model)
    heads = len(anatomy.heads)
    options = {
        "log_alpha": torch.linspace(-1, 2, heads).double(),
        "noise": torch.rand(batch.num_examples, heads).double(),
        "price": 0.01,
    }
    request = ScoreRequest(model, anatomy, (batch,), loss_of(family))
    expected = gates_gradient(request, batch, **options)
    with memory_of(model, 2):
        found = gates_gradient(request, batch, **options)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_losses_under_masks_are_the_same(rows):
    for family in ("bert", "gpt2"):
        model = build(family)
        anatomy, batches = inspected(model), batches_of(model)
        masks = 1 - torch.eye(len(anatomy.heads))[:4]
        options = {"batches": batches, "loss": loss_of(family), "masks": masks}
        expected = losses(model, anatomy, **options)
        with memory_of(model, rows):
            found = losses(model, anatomy, **options)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_evaluation_and_distances_are_the_same(rows):
    model, teacher = build("bert"), build("bert", seed=1)
    anatomy, batches, task = inspected(model), batches_of(model), get_task("classification")
    masks = torch.ones(2, len(anatomy.heads))
    masks[1, 3] = 0

    def distance(outputs, others, _inputs):
        return (outputs.logits - others.logits).square().sum(-1)

    def all_of_it():
        plain = predict(model, task, batches=batches)
        masked = predict_masked(model, anatomy, task, batches=batches, masks=masks)
        far = mean_distance(model, teacher, batches=batches, distance=distance)
        goal = with_teacher_targets(model, CLASSES, batches, seed=0)
        targets = torch.cat([batch.targets.flatten() for batch in goal.batches])
        return [*map(torch.from_numpy, (plain.predictions, plain.references)),
                *(torch.from_numpy(one.predictions) for one in masked),
                *(torch.from_numpy(one.losses) for one in masked),
                torch.tensor(far), targets]  # fmt: skip

    expected = all_of_it()
    with memory_of(model, rows):
        found = all_of_it()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_tokens_that_are_drawn_are_the_same():
    model = build("llama")
    batches = batches_of(model)
    expected = with_teacher_targets(model, TOKENS, batches, seed=3)
    with memory_of(model, 2):
        found = with_teacher_targets(model, TOKENS, batches, seed=3)
    for one, other in zip(found.batches, expected.batches, strict=True):
        assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_what_is_reconstructed_is_the_same(family, rows):
    model = build(family)
    anatomy, batches = inspected(model), batches_of(model, (6, 7))
    mask = torch.ones(len(anatomy.heads))
    mask[[1, 8]] = 0
    methods = ("scale", "refit")
    expected = fit(model, anatomy, batches=batches, mask=mask, methods=methods)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with memory_of(model, rows):
        found = fit(model, anatomy, batches=batches, mask=mask, methods=methods)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for one, other in zip(found, expected, strict=True):
        assert one.ridges == other.ridges
        for name, weight in one.weights.items():
            assert torch.allclose(weight, other.weights[name], rtol=1e-3, atol=1e-4)


def test_a_proof_runs_on_parts_and_is_no_proof_that_said_no_where_it_cannot():
    model = build("bert")
    inputs = token_inputs(rows=8)
    expected = run(model, inputs)
    with memory_of(model, 2):
        assert masked_equals_pruned(expected, run(model, inputs), rows=8).passed
    with memory_of(model, 0), pytest.raises(UnprovenError, match="out of memory"):
        run(model, inputs)


def test_a_latency_that_memory_does_not_hold_is_left_out():
    model = build("bert")
    with memory_of(model, 4):
        (found,) = latency_ms([model], sizes=sizes(batches_of(model)), seconds=0.01)
    assert set(found) == {"batch_1"}


@pytest.mark.parametrize(
    "method", ["gradient", "ablation", "activation", "entropy", "unique", "gates"]
)
def test_what_can_not_be_halved_is_refused_with_what_would_fit(method):
    model = build("bert")
    anatomy, batches = inspected(model), batches_of(model)
    with memory_of(model, 0), pytest.raises(HeadpruneError) as caught:
        score(model, anatomy, batches=batches, loss=loss_of("bert"), method=method)
    assert isinstance(caught.value, MemoryLimitError)
    assert "`max_length` 5" in caught.value.hint, caught.value
    assert caught.value.exit_code == 2


def test_other_errors_are_nobodys_memory():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        attempt(fail)


@given(
    length=st.integers(1, 70),
    room=st.integers(1, 80),
    known=st.integers(0, 3),
    width=st.integers(1, 3),
)
def test_parts_are_the_whole_in_its_order(length, room, known, width):
    """And none that ran is larger than what fits, unless it is one example."""
    rows = torch.arange(length).repeat_interleave(width)
    whole = Batch(
        {"x": torch.arange(length * width)}, torch.arange(length), rows, torch.arange(length)
    )
    parts, ran, failed = Parts("a test", Batch.halves, times=known), [], []

    def compute(batch):
        if batch.num_examples > room:
            failed.append(batch)
            raise MemoryError
        ran.append(batch)
        return batch

    found = parts.run(whole, compute)
    assert torch.equal(torch.cat([part.indices for part in found]), whole.indices)
    assert torch.equal(torch.cat([part.targets for part in found]), whole.targets)
    assert torch.equal(torch.cat([part.inputs["x"] for part in found]), whole.inputs["x"])
    for part in found:
        assert torch.equal(
            part.example_of_row, torch.arange(part.num_examples).repeat_interleave(width)
        )
    failed.clear()
    parts.run(whole, compute)
    assert not failed, "what memory doesn't hold is tried once"
