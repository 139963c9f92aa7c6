"""Healing: the distances are what they say, Trainer moves the weights towards the teacher, and nothing else."""

import copy
import os
import random

import numpy as np
import pytest
import torch
from families import build, sentences, toy_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import headprune as hp
from headprune.config import DistillSpec
from headprune.distillation.settings import (
    Checkpoints,
    last_checkpoint,
    open_checkpoints,
    parse_pairs,
    refuse_adapters,
    trainer_settings,
)
from headprune.distillation.teacher import DistillJob, distance_between, mean_distance
from headprune.distillation.trainer import train
from headprune.errors import (
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    ModelError,
    UnsupportedError,
)
from headprune.runtime.distributed import WorkerError
from headprune.surgery.cut import cut, dead_indices
from headprune.tasks.batches import InputFormat
from headprune.tasks.distill import class_distance, token_distance
from headprune.tasks.rows import Example
from headprune.tasks.similarity import half_square
from headprune.tasks.task import get_task

TASK_OF = {"bert": "classification", "llama": "causal-lm", "gpt2": "causal-lm"}
GONE = ["L0.H1", "L0.H0", "L2.H5", "L2.H4"]


def examples_of(task, count=216):
    if task == "causal-lm":
        generator = torch.Generator().manual_seed(3)
        lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
        return [
            Example(tokens=tuple(torch.randint(7, 90, (n,), generator=generator).tolist()))
            for n in lengths
        ]
    texts = sentences(2 * count, seed=3)
    if task == "similarity":
        return [Example((a, b)) for a, b in zip(texts[:count], texts[count:], strict=True)]
    return [Example((text,)) for text in texts[:count]]


class Lesson:
    """A pruned model, the whole one, and rows of the task."""

    def __init__(self, family, *, task=None, cls=None, gone=GONE, pad=False, **config):
        self.task = get_task(task or TASK_OF[family])
        config = {"num_labels": 8, **config} if self.task.name == "classification" else config
        self.teacher = build(family, cls=cls, **config)
        self.model = copy.deepcopy(self.teacher)
        anatomy = hp.inspect(self.model)
        remove = [head for head in anatomy.heads if str(head) in gone]
        self.anatomy = cut(self.model, anatomy, remove=remove, pad=pad)
        self.examples = examples_of(self.task.name)
        self.distance = distance_between(self.task.distillation, self.task.distillation)
        self.tokenizer = toy_tokenizer()
        self.said = []

    def notify(self, text):
        self.said.append(text)

    def track(self, items, description):
        del description
        return items

    def batches(self, examples, size=None):
        accepts = {"input_ids", "attention_mask"}.__contains__
        given = InputFormat(self.tokenizer, 16, batch_size=size, accepts=accepts)
        return self.task.to_batches(examples, given)

    def collate(self, examples):
        return self.batches(examples, len(examples))[0].inputs

    def away(self):
        """Return how far the model is from its teacher on the last rows, which aren't trained on."""
        batches = self.batches(self.examples[200:])
        return mean_distance(self.model, self.teacher, batches=batches, distance=self.distance)

    def train(self, folder, *, lora=None, checkpoint=None, **own):
        own = {"max_steps": 6, "learning_rate": 3e-4, "seed": 0, **own}
        pairs = own.pop("pairs", ["save_strategy=no"])
        job = DistillJob(
            teacher=self.teacher,
            examples=self.examples[:200],
            held_out=self.examples[200:],
            collate=self.collate,
            distance=self.distance,
            arguments=trainer_settings(pairs=pairs, own=own, folder=folder, device="cpu"),
            lora=lora,
            checkpoint=checkpoint,
            progress=self,
            sample=self.collate(self.examples[200:]),
        )
        return train(self.model, self.anatomy, job)


def global_states():
    """Return what the global generators would draw next, as they are."""
    numbers = np.random.get_state()[1].tolist()  # noqa: NPY002 - the one that Trainer seeds
    *key, _place = random.getstate()[
        1
    ]  # what checks types in tests draws from it, so its place moves
    return key, numbers, torch.get_rng_state().tolist()


def logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(classes=st.integers(2, 9), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_a_divergence_is_the_sum_over_classes_and_pulls_by_the_difference(classes, seed):
    student, teacher = (logits(3, classes, seed=seed + n).double() for n in (0, 1))
    student.requires_grad_()
    found = class_distance(student, teacher, {})
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    for row in range(3):
        brute = sum(float(p[row, c] * (p[row, c] / q[row, c]).log()) for c in range(classes))
        assert found[row].item() == pytest.approx(brute, abs=1e-9)
    assert (found >= -1e-12).all()
    found.sum().backward()
    assert torch.allclose(student.grad, q - p, atol=1e-9)


def test_tokens_count_where_they_are_predicted_and_padding_nowhere():
    student, teacher = logits(2, 5, 7), logits(2, 5, 7, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = token_distance(student, teacher, {"attention_mask": mask})
    for row, length in enumerate((5, 3)):
        brute = [
            class_distance(student[row], teacher[row], {})[i].item() for i in range(length - 1)
        ]
        assert found[row].item() == pytest.approx(np.mean(brute), rel=1e-6)
    student[1, 3:], teacher[1, 2:] = torch.nan, torch.inf
    again = token_distance(student, teacher, {"attention_mask": mask})
    assert torch.equal(again, found), "what padding says, even nonsense, is nobody's business"


def test_embeddings_are_as_far_apart_as_their_directions():
    first = normalize(torch.tensor([[1.0, 0], [1, 1], [2, 0], [3, 4]]))
    second = normalize(torch.tensor([[5.0, 0], [1, 0], [-1, 0], [4, 3]]))
    wanted = torch.tensor([0, 1 - 0.5**0.5, 2, 1 - 24 / 25])
    assert torch.allclose(half_square(first, second), wanted, atol=1e-6)


SETTINGS = [
    ("bert", "classification", None),
    ("llama", "causal-lm", None),
    ("bert", "similarity", "BertModel"),
]


@pytest.mark.parametrize(("family", "task", "cls"), SETTINGS)
def test_rows_don_t_depend_on_each_other_and_a_model_is_no_way_from_itself(family, task, cls):
    lesson = Lesson(family, task=task, cls=cls)
    together = lesson.away()
    alone = [
        mean_distance(
            lesson.model, lesson.teacher, batches=lesson.batches([e]), distance=lesson.distance
        )
        for e in lesson.examples[200:]
    ]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)
    assert together > 1e-3
    inputs = lesson.collate(lesson.examples)
    whole = copy.deepcopy(lesson.teacher)
    with torch.no_grad():
        wanted = lesson.teacher(**inputs)
    loss = lesson.distance(whole(**inputs), wanted, inputs).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    steepest = max(p.grad.abs().max().item() for p in whole.parameters() if p.grad is not None)
    assert steepest < 1e-5


@pytest.mark.parametrize(("family", "task", "cls"), SETTINGS)
def test_a_pruned_model_heals(family, task, cls, tmp_path, capsys):
    lesson = Lesson(family, task=task, cls=cls)
    before, config = lesson.away(), lesson.model.config.to_dict()
    random.seed(7)
    random.random()
    states = global_states()
    trained = lesson.train(tmp_path, max_steps=20)
    assert global_states() == states
    assert trained.steps == 20
    assert lesson.away() < before
    assert lesson.model.config.to_dict() == config
    assert hp.inspect(lesson.model).heads == lesson.anatomy.heads
    assert not lesson.model.training
    assert all(p.grad is None and p.requires_grad for p in lesson.model.parameters())
    assert capsys.readouterr().out == "", "stdout is for data"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "constant"])
def test_a_single_step_trains_whatever_the_schedule(schedule, tmp_path):
    lesson = Lesson("bert")
    before = lesson.away()
    trained = lesson.train(tmp_path, max_steps=1, pairs=[f"lr_scheduler_type={schedule}"])
    assert trained.steps == 1
    assert lesson.away() < before


def test_dead_weight_stays_dead(tmp_path):
    lesson = Lesson("llama", gone=["L0.H1", "L1.H2", "L1.H5"], pad=True)
    dead = [(item, places) for site in lesson.anatomy.sites for item, places in dead_indices(site)]
    assert dead
    lesson.train(tmp_path, max_steps=3, pairs=["weight_decay=0.1", "save_strategy=no"])
    for item, places in dead:
        parameter = lesson.model.get_parameter(item.parameter)
        assert not parameter.index_select(item.dim, torch.tensor(places)).any(), item.parameter
    with pytest.raises(UnsupportedError, match="padded heads"):
        refuse_adapters(lesson.anatomy)


@pytest.mark.parametrize(("family", "dtype"), [("bert", torch.float32), ("gpt2", torch.bfloat16)])
def test_merged_adapters_say_what_they_said(family, dtype, tmp_path):
    everything = [f"L1.H{head}" for head in range(6)]
    lesson = Lesson(family, gone=[*GONE, *everything] if family == "bert" else GONE)
    lesson.model.to(dtype)
    before = {name: p.detach().clone() for name, p in lesson.model.named_parameters()}
    away = lesson.away()
    trained = lesson.train(tmp_path, lora=4, max_steps=20)
    (proof,) = trained.proofs
    assert proof.passed
    assert proof.name == "merged == adapters"
    with torch.no_grad():
        largest = lesson.model(**lesson.collate(lesson.examples[200:])).logits.abs().max().item()
    assert proof.limit == pytest.approx(1e-5 * largest, rel=0.1), (
        "in single precision, whatever the weights' is"
    )
    assert {p.dtype for p in lesson.model.parameters()} == {dtype}
    assert lesson.away() < away
    after = dict(lesson.model.named_parameters())
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.endswith("weight") for name in moved)
    assert not any(name.startswith(("classifier", "lm_head", "embed")) for name in moved)
    assert all(value.requires_grad == bool(value.numel()) for value in after.values())


@pytest.mark.parametrize("lora", [None, 4])
def test_a_training_that_was_stopped_ends_with_the_same_weights(lora, tmp_path):
    whole, stopped = Lesson("bert", attention_probs_dropout_prob=0.5), Lesson("bert")
    start = copy.deepcopy(stopped.model)
    keep = ["save_steps=2", "save_total_limit=9", "logging_steps=1"]
    whole.train(tmp_path / "whole", lora=lora, pairs=keep)
    second = tmp_path / "whole" / "checkpoint-4"
    assert last_checkpoint(tmp_path / "whole").name == "checkpoint-6"
    stopped.model = start
    trained = stopped.train(tmp_path / "again", lora=lora, checkpoint=second, pairs=keep)
    assert trained.steps == 6
    assert [line.partition(":")[0] for line in stopped.said] == ["step 5/6", "step 6/6"]
    for (name, value), other in zip(
        whole.model.named_parameters(), stopped.model.parameters(), strict=True
    ):
        assert torch.equal(value, other), name


def test_half_precision_is_trained_in_single_and_rounded_once(tmp_path):
    half, single = Lesson("bert"), Lesson("bert")
    half.model.to(torch.bfloat16)
    single.model.to(torch.bfloat16).float()
    before = half.away()
    for lesson in (half, single):
        lesson.train(tmp_path, max_steps=20)
    assert half.away() < before
    for (name, found), wanted in zip(
        half.model.named_parameters(), single.model.parameters(), strict=True
    ):
        assert torch.equal(found, wanted.bfloat16()), name


def test_a_training_that_diverged_is_told(tmp_path):
    lesson = Lesson("bert")
    with pytest.raises(ModelError, match="diverged"):
        lesson.train(tmp_path, learning_rate=1e30, pairs=["save_strategy=no", "warmup_steps=0"])


def test_settings_have_the_types_of_their_fields():
    found = parse_pairs(
        [
            "weight-decay=1e-2",
            "bf16=true",
            "warmup_steps=3",
            "lr_scheduler_type=cosine",
            "run_name=x",
        ]
    )
    assert found == {
        "weight_decay": 0.01,
        "bf16": True,
        "warmup_steps": 3.0,
        "lr_scheduler_type": "cosine",
        "run_name": "x",
    }


def test_a_value_of_a_setting_may_hold_commas(tmp_path):
    schedule, optimizer = (
        'lr_scheduler_kwargs={"num_cycles": 1, "min_lr": 0.1}',
        "optim_args=a=1,b=2",
    )
    spec = DistillSpec(trainer=(schedule, optimizer))
    assert spec.trainer == (schedule, optimizer)
    assert DistillSpec(trainer=optimizer).trainer == (optimizer,)
    arguments = trainer_settings(pairs=spec.trainer, own={}, folder=tmp_path, device="cpu")
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 1, "min_lr": 0.1}
    assert arguments.optim_args == "a=1,b=2"


@pytest.mark.parametrize(
    ("pair", "what", "hint"),
    [
        ("weight_decay", "is no setting", "weight_decay=0.01"),
        ("weight_dekay=1", "no argument 'weight_dekay'", "did you mean 'weight_decay'"),
        ("weight_decay=much", "weight_decay can't be 'much'", "TrainingArguments"),
        ("num_train_epochs=2", "num_train_epochs can't be set this way", "`epochs`"),
        ("gradient_checkpointing=true", "gradient_checkpointing can't", "without dropout"),
        ("lr_scheduler_type=bent", "Trainer refuses these settings", "TrainingArguments"),
    ],
)
def test_settings_that_are_none_are_refused(pair, what, hint, tmp_path):
    with pytest.raises(ConfigError) as caught:
        trainer_settings(pairs=[pair], own={}, folder=tmp_path, device="cpu")
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_only_the_same_training_goes_on(tmp_path):
    folder, facts = tmp_path / "run", {"rows": "a", "seed": 1}
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_checkpoints(folder, facts=facts, resume=True)
    assert open_checkpoints(folder, facts=facts, resume=False).last is None
    strangers = ("checkpoint-5-of-a-friend", "checkpoint-notes.txt")
    for name in strangers:
        (folder / name).mkdir()
        with pytest.raises(CheckpointError, match="isn't of a training by headprune"):
            open_checkpoints(folder, facts=facts, resume=False)
        (folder / name).rmdir()
    for step, state in ((2, "{}"), (4, "{}"), (6, '{"half')):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (folder / "checkpoint-8").mkdir()
    assert open_checkpoints(folder, facts=facts, resume=True).last.name == "checkpoint-4"
    with pytest.raises(CheckpointError, match=r"another training \(seed: 1, and now 2\)"):
        open_checkpoints(folder, facts={**facts, "seed": 2}, resume=True)
    with pytest.raises(CheckpointError, match="was stopped"):
        open_checkpoints(folder, facts=facts, resume=False)
    for resume in (
        True,
        False,
    ):  # checkpoints that nobody of ours made are neither gone on from nor removed
        for theirs in (None, '{"mood": "better"}'):
            (folder / "heal.json").unlink(missing_ok=True)
            if theirs is not None:
                (folder / "heal.json").write_text(theirs)
            with pytest.raises(CheckpointError, match="isn't of a training by headprune"):
                open_checkpoints(folder, facts=facts, resume=resume)


def test_checkpoints_of_others_stay_where_ours_are_removed(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3-best").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("theirs")
    Checkpoints(tmp_path, None).drop()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-3-best", "checkpoint-notes.txt"}


@pytest.mark.parametrize("place", range(7))
def test_what_could_not_be_removed_does_not_stop_the_next_training(place, tmp_path, monkeypatch):
    folder, calls = tmp_path / "run", []
    checkpoints = open_checkpoints(folder, facts={"seed": 1}, resume=False)
    (folder / "checkpoint-1").mkdir()
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / "checkpoint-1" / name).write_text("{}")

    def failing(real):
        def call(*args, **options):
            calls.append(args)
            if len(calls) == place + 1:
                raise OSError(5, "Input/output error", str(args[0]))
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, failing(getattr(os, name)))
        checkpoints.drop()
    assert open_checkpoints(folder, facts={"seed": 2}, resume=False).last is None


@pytest.mark.parametrize("removed", range(5))
def test_checkpoints_are_whole_or_not_gone_on_from_wherever_their_removal_stops(
    removed, tmp_path, monkeypatch
):
    names = {"model.safetensors", "optimizer.pt", "trainer_state.json", "training_args.bin"}
    (tmp_path / "checkpoint-1").mkdir()
    for name in names:
        (tmp_path / "checkpoint-1" / name).write_text("{}")
    unlink, calls = os.unlink, []

    def stopped(*args, **options):
        if len(calls) == removed:
            raise KeyboardInterrupt
        calls.append(args)
        unlink(*args, **options)

    monkeypatch.setattr(os, "unlink", stopped)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, None).drop()
    left = {path.name for path in (tmp_path / "checkpoint-1").glob("*")}
    assert len(left) == len(names) - removed
    assert last_checkpoint(tmp_path) is None or left == names


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[x/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL error"),
    ],
)
def test_a_process_that_was_lost_in_training_is_no_fault_of_ours(tmp_path, error):
    lesson = Lesson("bert")

    def fail(*_args):
        raise error

    lesson.model.register_forward_pre_hook(fail)
    with pytest.raises(WorkerError, match="another process of this run died") as caught:
        lesson.train(tmp_path, max_steps=2)
    assert "`resume`" in caught.value.hint


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_weights_that_adapters_froze_learn_again_whatever_ended_the_training(error, tmp_path):
    """And what didn't learn before doesn't learn now; memory that runs out is told with what would fit."""
    lesson = Lesson("bert")
    model = lesson.model
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def fail(*_args):
        raise error("the surroundings")

    model.register_forward_pre_hook(fail)
    expected = MemoryLimitError if error is torch.OutOfMemoryError else error
    with pytest.raises(expected) as caught:
        lesson.train(tmp_path, lora=4, max_steps=2)
    assert all(parameter.requires_grad is learns for parameter, learns in before)
    if expected is MemoryLimitError:
        assert "`heal_weights=attention`" in caught.value.hint
