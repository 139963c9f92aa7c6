"""A long pass over the data: stopped and gone on with, or shared by several processes, it ends with the same numbers."""

import os
import subprocess
import sys

import pytest
import torch
from families import build, inspected, score, sentences, token_inputs, toy_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from headprune.analysis.roles import Roles
from headprune.artefact import read_artefact
from headprune.batch import as_batches, forward
from headprune.cli.options import ACTING
from headprune.config import Settings
from headprune.distillation import trainer
from headprune.distillation.memory import memory_for, refuse_too_large
from headprune.distillation.settings import trainer_settings
from headprune.errors import CheckpointError, ConfigError, MemoryLimitError
from headprune.passes import RunContext
from headprune.plans import HeadScores
from headprune.results import Results
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal, open_journal
from headprune.runtime.launcher import divided
from headprune.workflows.heal import _shared_checkpoints
from headprune.workflows.healing import check_training


def loss(outputs, batch):
    return outputs[0].flatten(1).square().mean(1)


class StoppedError(Exception):
    """What kills a run."""


class DyingJournal(Journal):
    """A journal whose process dies after so many results: the last one is on disk."""

    left = 0

    def put(self, name, tensor):
        if type(self).left == 0:
            raise StoppedError
        type(self).left -= 1
        super().put(name, tensor)


@pytest.mark.parametrize("method", ["ablation", "gradient"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, bert, method, done):
    rows = (7, 9, 11, 13)  # no trial has as many, and no stack of masks
    batches = as_batches([token_inputs(rows=count, seed=count) for count in rows])
    settings = {"anatomy": inspected(bert), "batches": batches, "loss": loss, "method": method}
    whole = score(bert, **settings)
    DyingJournal.left = done
    with pytest.raises(StoppedError):
        score(bert, **settings, context=RunContext(journal=DyingJournal(tmp_path)))
    journal = Journal(tmp_path)
    assert journal.count() == done
    again = listening(bert, rows=rows)
    resumed = score(bert, **settings, context=RunContext(journal=journal))
    assert resumed.to_json() == whole.to_json()
    assert journal.count() == 4
    # What was done isn't done again.
    assert list(dict.fromkeys(again)) == list(rows[done:])


def listening(model, rows):
    seen = []
    embeddings = model.bert.embeddings
    embeddings.register_forward_hook(
        lambda _m, _a, output: seen.append(len(output)) if len(output) in rows else None
    )
    return seen


def test_half_a_file_counts_as_none(tmp_path):
    journal = Journal(tmp_path)
    journal.put("one", torch.arange(5.0))
    path = tmp_path / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert journal.get("one") is None
    assert journal.get("two") is None


def test_other_facts_are_another_journal(tmp_path):
    one = open_journal(tmp_path, facts={"seed": 0})
    one.put("result", torch.ones(1))
    assert open_journal(tmp_path, facts={"seed": 1}).get("result") is None
    assert torch.equal(open_journal(tmp_path, facts={"seed": 0}).get("result"), torch.ones(1))
    one.drop()
    assert not list(tmp_path.iterdir())


def test_a_journal_that_can_not_be_written_is_our_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError):
        Journal(tmp_path / "file" / "journal").put("x", torch.ones(1))


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("method", ["ablation", "gradient"])
def test_shares_add_up_to_the_whole(bert, method, size):
    """Each process's part of the work, put together without any process: fewer batches than processes split the masks."""
    batches = as_batches([token_inputs(rows=rows, seed=rows) for rows in (4, 2, 3)])
    settings = {"anatomy": inspected(bert), "batches": batches, "loss": loss, "method": method}
    whole = score(bert, **settings)
    parts = []

    class Alone(World):
        """A world whose others are asked one after the other."""

        def summed(self, tensor):
            parts.append(tensor.clone())
            return tensor

    for rank in range(size):
        score(bert, **settings, context=RunContext(world=Alone(rank, size)))
    total = torch.stack(parts).sum(0)

    class Answered(World):
        def summed(self, _tensor):
            return total

    again = score(bert, **settings, context=RunContext(world=Answered(0, size)))
    assert torch.allclose(torch.tensor(again.values), torch.tensor(whole.values), atol=1e-6)
    if size <= len(batches):
        assert again.to_json() == whole.to_json()


def launch(folder, *words, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # The dashes keep torchrun from taking --run for its own --run-path.
    start = [*launcher, "-m", "headprune", "--"]
    return subprocess.run(
        [*(start if processes > 1 else [sys.executable, "-m", "headprune"]), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def data_and_model(tmp_path_factory):
    """Return a directory with a classifier and a file of texts."""
    folder = tmp_path_factory.mktemp("processes")
    model = build("bert")
    model.save_pretrained(folder / "model")
    toy_tokenizer().save_pretrained(folder / "model")
    causal = build("llama", max_position_embeddings=64, initializer_range=0.4)
    causal.save_pretrained(folder / "causal")
    toy_tokenizer().save_pretrained(folder / "causal")
    rows = "\n".join(f"{text},{place % 2}" for place, text in enumerate(sentences(40)))
    (folder / "data.csv").write_text(f"text,label\n{rows}\n")
    return folder


SCORE = ("score", "model", "--data", "data.csv", "--method", "ablation", "--batch-size", "8")


def test_two_processes_score_like_one(data_and_model):
    one = launch(data_and_model, *SCORE, "--run-dir", "one", processes=1)
    two = launch(data_and_model, *SCORE, "--run-dir", "two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    alone, together = (
        read_artefact(HeadScores, data_and_model / run / "scores.json") for run in ("one", "two")
    )
    assert together.values == pytest.approx(alone.values, abs=1e-6)
    assert together.standard_errors == pytest.approx(alone.standard_errors, abs=1e-6)
    # One of them talks and writes, and nothing is left of the parts.
    assert two.stderr.count("written:") == two.stdout.count("ablation scores from") == 1
    assert [path.name for path in (data_and_model / "two").iterdir()] == ["scores.json"]


@pytest.mark.nightly
def test_two_processes_see_what_one_sees(data_and_model):
    words = ("analyze", "causal", "--data", "data.csv", "--text", "text", "--batch-size", "4")
    words += ("--num-sequences", "20", "--sequence-length", "12")
    one = launch(data_and_model, *words, "--run-dir", "look-one", processes=1)
    two = launch(data_and_model, *words, "--run-dir", "look-two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    alone, together = (
        read_artefact(Roles, data_and_model / run / "roles.json")
        for run in ("look-one", "look-two")
    )
    assert {"sink", "induction", "copying"} <= {one.role for one in alone.measures}
    for first, second in zip(alone.measures, together.measures, strict=True):
        assert second.values == pytest.approx(first.values, abs=1e-6), first.role
        assert (second.queries, second.passes) == (first.queries, first.passes)
    assert two.stderr.count("written:") == 1
    assert [path.name for path in (data_and_model / "look-two").iterdir()] == ["roles.json"]


@pytest.fixture
def alone(tmp_path):
    """A world of one process, as a launcher would start it."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_model_that_several_processes_train_runs_like_the_model_itself(alone):
    """A classifier without a pad token would refuse several rows: the model itself says that none is padded."""
    model = build("gpt2", cls="GPT2ForSequenceClassification", pad_token_id=None)
    inputs = token_inputs(rows=3)
    inputs["attention_mask"][:] = 1
    together = DistributedDataParallel(model, find_unused_parameters=True)
    assert torch.equal(forward(together, inputs).logits, forward(model, inputs).logits)


def test_training_is_refused_where_trainer_would_not_share_it(monkeypatch, tmp_path):
    """Trainer counts its processes by other variables than the launcher's, on GPUs, and none on a Mac's."""
    monkeypatch.setattr("headprune.distillation.settings.launched_size", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes were started, and Trainer trains in 1"):
        trainer_settings(pairs=[], own={}, folder=tmp_path, device="cpu")


def test_the_steps_of_a_training_are_those_that_are_divided(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "headprune.distillation.settings.divided", lambda rows, times: (rows // 2, times // 3)
    )
    own, pairs = {"per_device_train_batch_size": 8}, ["gradient_accumulation_steps=6"]
    found = trainer_settings(pairs=pairs, own=own, folder=tmp_path, device="cpu")
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (4, 2)


def test_one_gpu_is_not_shared(monkeypatch):
    asked = Settings.of(model="m", device="cuda:0")
    check_training(asked)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="'cuda:0'"):
        check_training(asked)


def test_processes_take_the_memory_of_all_of_them(monkeypatch):
    """Gradients are put together in a copy; on CPUs, processes of one machine share its memory."""
    model = build("bert")
    alone = memory_for(model, lora=None, trained=None, copied=None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    together = memory_for(model, lora=None, trained=None, copied=None)
    assert together.training == alone.training * 16 // 12
    need = together.single + together.teacher + together.training + together.start
    monkeypatch.setattr("headprune.distillation.memory.available_memory", lambda: 2 * need)
    refuse_too_large(together, model, smaller="")
    monkeypatch.setattr("headprune.distillation.memory.available_memory", lambda: 2 * need - 1)
    with pytest.raises(MemoryLimitError):
        refuse_too_large(together, model, smaller="")


class Told(World):
    """A second process, which hears from the first one what ``said`` is."""

    said = 0

    def summed(self, tensor):
        assert not tensor.any(), "it has no say of its own"
        return torch.full_like(tensor, type(self).said)


def test_a_process_goes_on_from_the_checkpoint_of_the_first_one_or_not_at_all(tmp_path):
    """It reads the folder, which the first one keeps, and writes nothing there."""
    other, asked = Told(1, 2), {"facts": {"seed": 1}, "resume": True}
    assert _shared_checkpoints(other, tmp_path, **asked).last is None
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="doesn't see"):
        _shared_checkpoints(other, tmp_path, **asked)
    Told.said = 4
    try:
        assert _shared_checkpoints(other, tmp_path, **asked).last.name == "checkpoint-4"
        with pytest.raises(CheckpointError, match="doesn't see"):
            _shared_checkpoints(other, tmp_path / "elsewhere", **asked)
    finally:
        Told.said = 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("first", [0, 1])
def test_all_processes_write_a_checkpoint_when_the_first_one_finds_it_time(first, monkeypatch):
    monkeypatch.setattr(Told, "said", first)
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", 1e9 if first else 0)
    control = trainer.TrainerControl()
    state = trainer.TrainerState(global_step=1, max_steps=3)
    trainer._SavesByTime(Told(1, 2)).on_step_end(None, state, control)
    assert control.should_save == bool(first), "whatever its own clock says"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("steps", "more"),
    [(6, ()), (3, ("--trainer", "gradient_accumulation_steps=4")), (6, ("--lora", "4"))],
)
def test_two_processes_heal_like_one(data_and_model, tmp_path, steps, more):
    """Within an epoch; also a cut with heads that are padded, whose dead weight stays zero."""
    gqa = "group" if "--lora" in more else "pad"
    (tmp_path / "texts.txt").write_text("\n".join(sentences(300)))
    data = ("--data", "texts.txt", "--max-length", "16")
    cut = ("prune", str(data_and_model / "causal"), *data, "--keep", "0.5", "--gqa", gqa)
    assert launch(tmp_path, *cut, "--out", "cut", processes=1).returncode == 0
    heal = ("heal", "cut", *data, "--batch-size", "4", "--max-steps", str(steps), *more)
    for processes in (1, 2):
        words = (*heal, "--learning-rate", "1e-3", "--out", str(processes))
        ended = launch(tmp_path, *words, processes=processes)
        assert ended.returncode == 0, ended.stderr
    old, one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("cut", "1", "2"))
    moved = max((one[name] - old[name]).abs().max() for name in old)
    assert moved > 1e-3
    assert max((one[name] - two[name]).abs().max() for name in old) < 1e-2 * moved
    noted = read_artefact(Results, tmp_path / "2" / "results.json").heal.settings
    assert noted["processes"] == 2
    assert (
        ended.stderr.count(f"healing: {steps}/{steps}") == ended.stdout.count("the model: 2") == 1
    )


@pytest.mark.parametrize("processes", [2, 3, 4])
@given(rows=st.integers(1, 24), times=st.integers(1, 12))
def test_a_step_of_training_is_divided_among_processes_or_refused(processes, rows, times):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(processes))
        try:
            each, parts = divided(rows, times)
        except ConfigError as refused:
            assert rows * times % processes
            assert "multiple of" in refused.hint
        else:
            assert each * parts * processes == rows * times
            assert times % parts == 0, "rows that were together aren't mixed with others"


@pytest.mark.parametrize("command", sorted(set(ACTING) - {"score", "analyze", "heal"}))
def test_other_commands_want_one_process(command, monkeypatch, command_line):
    """What they hint at is an option that they have."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _out, err = command_line(command)
    assert code == 2
    assert f"{command} runs in one process, and a launcher started 2" in err
    assert ("--scores FILE" in err) == ("scores" in ACTING[command])
