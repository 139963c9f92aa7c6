"""``prune --heal``: who is trained on what, what goes on after a stop, what is kept, and what is said."""

import io
import itertools
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from families import build, sentences, t5, token_inputs, toy_tokenizer
from hypothesis import given
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import processors
from transformers import T5Config, T5ForSequenceClassification

import headprune as hp
from headprune.config import Settings
from headprune.distillation import trainer
from headprune.distillation.settings import trainer_settings
from headprune.distillation.teacher import (
    SHARES,
    DistillJob,
    attention_parameters,
    copy_as_teacher,
    keep_nearest,
)
from headprune.distillation.trainer import train
from headprune.errors import ConfigError
from headprune.report.tables import prune_table
from headprune.report.terminal import ConsoleProgress
from headprune.results import Results
from headprune.surgery.cut import cut
from headprune.tasks.rows import Example, noted_rows
from headprune.workflows.heal_cut import BETAS, FORWARDS, FORWARDS_PER_STEP, set_apart_of
from headprune.workflows.prune import prune
from headprune.workflows.reading import Rows
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.session import open_session

CUT = ("--keep", "0.4", "--steps", "1", "--method", "magnitude", "--roles", "none", "--no-latency")


@pytest.fixture(scope="module")
def decoder_directory(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("models") / "decoder"
    build("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def encoder_decoder_directory(tmp_path_factory):
    """A T5 that classifies reads the hidden state of the last token, which must end the text."""
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.eos_token = "</s>"
    config = T5Config(
        **{**t5().config.to_dict(), "num_labels": 2, "pad_token_id": 0, "eos_token_id": 2}
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models") / "t5"
    T5ForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def there(here, decoder_directory):
    """A working directory with labelled rows, others that report, unlabelled ones, and prose."""
    rows = enumerate(sentences(30, seed=5))
    (here / "test.csv").write_text("text,label\n" + "".join(f"{t},{n % 2}\n" for n, t in rows))
    (here / "texts.csv").write_text("text\n" + "\n".join(sentences(50, seed=6)) + "\n")
    (here / "prose.txt").write_text("\n".join(sentences(90, seed=1)))
    (here / "report.txt").write_text("\n".join(sentences(30, seed=2)))
    return here


ROWS = ("--data", "d.csv", "--eval-data", "test.csv", "--num-samples", "16")


def weights(directory):
    return load_file(Path(directory) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def results_of(directory):
    return json.loads((Path(directory) / "results.json").read_text())


class Stop:
    """Stops a training before a step is made, as Ctrl-C does."""

    def __init__(self, monkeypatch, step):
        real = trainer.Distillation.compute_loss

        def compute_loss(self, *args, **options):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return real(self, *args, **options)

        monkeypatch.setattr(trainer.Distillation, "compute_loss", compute_loss)


# Rows.


@pytest.mark.parametrize(
    "given",
    [
        {"data": "d.csv", "eval_data": "test.csv"},
        {"data": "d.csv"},
        {"data": "d.csv", "objective": "distill"},
        {"data": "d.csv", "max_drop": "50%", "keep": None},
        {"data": "d.csv", "heal_data": "texts.csv"},
        {"data": "d.csv", "eval_data": "test.csv", "heal_data": "test-and-texts.csv"},
        {"model": "decoder", "data": "prose.txt", "max_length": 16},
        {"model": "decoder", "data": "prose.txt", "eval_data": "report.txt", "max_length": 16},
        {"model": "decoder", "data": "prose.txt", "heal_data": "report.txt", "max_length": 16},
    ],
    ids=str,
)
def test_no_row_that_reports_or_decides_is_trained_on(given, there, decoder_directory):
    both = (there / "test.csv").read_text() + (there / "texts.csv").read_text()[5:].replace(
        "\n", ",0\n"
    )
    (there / "test-and-texts.csv").write_text(both)
    model = str(decoder_directory) if given.get("model") else "m"
    values = {"keep": 0.5, "heal": "auto", "num_samples": 12, **given, "model": model}
    settings = Settings.of(**{name: value for name, value in values.items() if value is not None})
    session = open_session(settings, progress=ConsoleProgress(quiet=True))
    decides = settings.plan.max_drop is not None
    parts = separate_rows(session, Purpose(decides=decides, trains=True))
    digests = {
        name: {example.input_digest for example in examples}
        for name, examples in {
            "train": parts.train.examples,
            "fit": parts.fit,
            "held_out": parts.held_out,
            "decide": parts.decide.examples,
            "report": parts.report.examples,
        }.items()
    }
    for name in ("held_out", "decide", "report"):
        assert not digests["train"] & digests[name], name
    for name in ("fit", "held_out", "decide"):
        assert not digests["report"] & digests[name], name
    assert all(example.target is None for example in parts.train.examples)
    assert len(digests["train"]) > 9
    fresh = [one for one in parts.train.examples if one.input_digest not in digests["fit"]]
    assert tuple(fresh) == parts.train.examples[: len(fresh)], "fresh rows come first"
    assert (digests["fit"] <= digests["train"]) == ("heal_data" not in given)
    if given.get("heal_data") == "test-and-texts.csv":
        assert len(digests["train"]) == 50
    if "eval_data" not in given and "heal_data" not in given and given["data"] == "d.csv":
        others = 40 - 12 * (1 if not decides else 5)
        assert decides or len(digests["report"]) == others // 2


def test_rows_that_report_are_no_text_to_train_on(there, command_line):
    code, _out, err = command_line(
        "prune", "m", *ROWS, *CUT, "--heal", "2", "--heal-data", "test.csv", "--out", "o"
    )
    assert code == 2
    assert "every row of the data is an evaluation row too" in err
    assert "leave --heal-data out" in err


def test_what_was_trained_on_never_reports_again(there, command_line):
    prune = ("prune", "m", *ROWS, *CUT, "--heal", "2", "--heal-data", "texts.csv", "--out", "o")
    code, out, err = command_line(*prune, "--json")
    assert code == 0, err
    heal = json.loads(out)["heal"]
    assert heal["data"]["n"] == heal["trained_on"] == 50 - 5, "a few decide"
    assert heal["held_out"] == 5 + 4, "beside calibration rows, as they are so few"
    texts = [Example((line,)) for line in Path("texts.csv").read_text().splitlines()[1:]]
    assert set(noted_rows(texts)) <= set(heal["rows"]), "those that decide are noted, too"
    session = open_session(
        Settings.of(model="o", data="test.csv", task="classification"),
        progress=ConsoleProgress(quiet=True),
    )
    assert set(heal["rows"]) <= session.used_rows
    reported = separate_rows(session, Purpose(use="x")).report.examples
    assert not set(noted_rows(reported)) & set(heal["rows"])
    _code, _out, err = command_line("eval", "o", "--data", "d.csv")
    assert "careful: 16 of these 40 rows chose the heads" in err, "those that decided, too"


# Steps.


def test_auto_takes_three_times_as_long_as_scoring(there, command_line):
    words = (
        "prune",
        "m",
        "--data",
        "d.csv",
        "--eval-data",
        "test.csv",
        "--num-samples",
        "32",
        *CUT,
    )
    code, out, err = command_line(*words, "--heal", "auto", "--out", "o", "--json")
    assert code == 0, err
    heal = json.loads(out)["heal"]
    chosen = heal["settings"]
    step = chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"]
    assert step == 32, "as many as there are: 2,048 tokens would be more"
    assert heal["steps"] == round(FORWARDS * 32 / (FORWARDS_PER_STEP * step))
    assert BETAS.items() <= chosen.items()
    given = ("--trainer", "adam_beta1=0.9", "--trainer", "max_grad_norm=0.5")
    code, out, err = command_line(*words, "--heal", "1", *given, "--out", "p", "--json")
    assert code == 0, err
    given_back = {"adam_beta1": 0.9, "adam_beta2": BETAS["adam_beta2"], "max_grad_norm": 0.5}
    assert given_back.items() <= json.loads(out)["heal"]["settings"].items()


def test_a_step_is_the_same_however_many_rows_fit_at_once(there, command_line, monkeypatch):
    words = ("prune", "m", *ROWS, *CUT, "--heal", "3", "--learning-rate", "1e-4")
    code, _out, err = command_line(*words, "--batch-size", "4", "--out", "four")
    assert code == 0, err
    real, seen = trainer.Distillation.compute_loss, []

    def compute_loss(self, model, inputs, *args, **options):
        seen.append(len(inputs["input_ids"]))
        if seen[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, inputs, *args, **options)

    monkeypatch.setattr(trainer.Distillation, "compute_loss", compute_loss)
    code, _out, err = command_line(*words, "--out", "halved")
    assert code == 0, err
    assert seen[:3] == [32, 16, 8]
    assert "going on with 4 rows at a time, for the same steps" in err
    assert same(weights("four"), weights("halved"))
    assert results_of("halved")["heal"]["settings"]["gradient_accumulation_steps"] == 8


# Stops.


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("bert", ()),
        ("llama", ("--heal-weights", "attention")),
        pytest.param("bert", ("--lora", "2"), marks=pytest.mark.nightly),
        pytest.param("t5", (), marks=pytest.mark.nightly),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_weights_of_an_undisturbed_one(
    family, more, there, command_line, monkeypatch, decoder_directory, encoder_decoder_directory
):
    model = {"bert": "m", "llama": decoder_directory, "t5": encoder_decoder_directory}[family]
    rows = (
        ("--data", "prose.txt", "--max-length", "16", "--num-samples", "16")
        if family == "llama"
        else ROWS
    )
    heal = ("--heal", "4", "--learning-rate", "1e-4", "--trainer", "save_steps=1", *more)
    words = ("prune", model, *rows, *CUT, *heal)
    code, _out, err = command_line(*words, "--out", "whole")
    assert code == 0, err
    with monkeypatch.context() as patch:
        Stop(patch, 2)
        code, _out, err = command_line(*words, "--out", "stopped")
    assert code == 130
    assert "the same command goes on" in err
    assert not Path("stopped").exists()
    code, _out, err = command_line(*words, "--out", "stopped")
    assert code == 0, err
    assert "checkpoint-2" in err
    assert same(weights("whole"), weights("stopped"))
    assert results_of("whole")["heal"] == results_of("stopped")["heal"]
    assert not list(Path("headprune-runs").glob("heal-*"))
    code, _out, err = command_line(*words, "--seed", "1", "--out", "other")
    assert "going on" not in err
    assert not same(weights("whole"), weights("other"))


def test_a_stopped_training_goes_on_with_the_plan_that_it_began_with_or_not_at_all(
    there, command_line, monkeypatch
):
    heal = ("--heal", "4", "--trainer", "save_steps=1")
    words = ("prune", "m", *ROWS, *CUT, *heal, "--out", "o")
    with monkeypatch.context() as patch:
        Stop(patch, 2)
        assert command_line(*words)[0] == 130
    with monkeypatch.context() as patch:
        patch.setitem(BETAS, "adam_beta1", 0.5)  # as an older version may have had it
        code, _out, err = command_line(*words)
    assert code == 0, err
    assert "going on" not in err


def test_checkpoints_are_written_by_time(there, command_line, monkeypatch):
    words = ("prune", "m", *ROWS, *CUT, "--heal", "4", "--learning-rate", "1e-4", "--out", "o")
    for seconds, kept in ((1000, []), (0, ["checkpoint-3"])):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", seconds)
            Stop(patch, 3)
            assert command_line(*words)[0] == 130
        assert [path.name for path in Path("headprune-runs").glob("heal-*/checkpoint-*")] == kept


# What is kept.


@pytest.mark.parametrize("more", [(), ("--lora", "2"), ("--heal-weights", "attention")])
def test_a_healing_that_does_not_help_leaves_the_weights_as_they_were(more, there, command_line):
    words = ("prune", "m", *ROWS, "--keep", "0.95", *CUT[2:])
    assert command_line(*words, "--out", "cut")[0] == 0
    bad = ("--heal", "2", "--learning-rate", "9", "--trainer", "warmup_steps=0", *more)
    code, out, err = command_line(*words, *bad, "--out", "o")
    assert code == 0, err
    assert "careful: it didn't heal" in err
    assert "that didn't help" in out
    assert same(weights("cut"), weights("o"))
    results = results_of("o")
    assert results["cut"] is None
    assert results["heal"]["share"] == 0
    assert results["after"]["value"] == results_of("cut")["after"]["value"]
    assert "were trained" not in Path("o/README.md").read_text()
    words = (
        "heal",
        "o",
        "--teacher",
        "m",
        "--data",
        "d.csv",
        "--eval-data",
        "test.csv",
        "--max-steps",
        "2",
    )
    code, _out, err = command_line(*words, *bad[2:], "--out", "again")
    assert code == 0, err
    assert "careful: it didn't heal" in err
    assert same(weights("cut"), weights("again"))


def test_what_helps_is_kept_and_stands_beside_what_was_cut(there, command_line):
    words = ("prune", "m", *ROWS, *CUT, "--heal", "30")
    code, out, err = command_line(*words, "--out", "o")
    assert code == 0, err
    results = results_of("o")
    assert results["heal"]["share"] > 0
    assert results["heal"]["loss"][1] < results["heal"]["loss"][0]
    stages = [results[name] for name in ("before", "cut", "after")]
    assert len({one["n"] for one in stages}) == 1
    assert stages[1]["parameters"] == stages[2]["parameters"] < stages[0]["parameters"]
    assert stages[1]["model"]["fingerprint"] != stages[2]["model"]["fingerprint"]
    assert [
        line.split()[0] for line in out.splitlines() if line.startswith(("before", "cut", "healed"))
    ] == [
        "before",
        "cut",
        "healed",
    ]
    assert "heal it:" not in out
    card = Path("o/README.md").read_text()
    assert "| | before | cut | healed |\n|---|---|---|---|\n" in card
    assert all(
        line.count("|") == 5 for line in card.split("|---|---|---|---|\n")[1].splitlines()[:4]
    )
    assert "Then all weights were trained towards the outputs of the whole model" in card
    assert [proof["passed"] for proof in results["proofs"]] == [True] * 3


# Teachers.


@pytest.mark.parametrize(
    ("family", "lora"), [("bert", None), ("llama", None), ("t5", None), ("bert", 2), ("llama", 2)]
)
def test_a_teacher_is_the_whole_model_whatever_becomes_of_the_student(family, lora, tmp_path):
    model = t5() if family == "t5" else build(family)
    inputs = (
        token_inputs()
        if family != "t5"
        else {**token_inputs(), "decoder_input_ids": torch.tensor([[0, 5, 6]] * 4)}
    )
    anatomy = hp.inspect(model)
    names = attention_parameters(model, anatomy)
    teacher = copy_as_teacher(model, changed=names)
    shared = {
        name
        for name, value in teacher.named_parameters()
        if value.data_ptr() == model.get_parameter(name).data_ptr()
    }
    assert shared == {name for name, _value in model.named_parameters()} - names
    cuttable = {item.parameter for site in anatomy.sites for item in site.slices}
    assert cuttable <= names
    assert len(shared) > 5
    with torch.no_grad():
        expected = model(**inputs).logits
        smaller = cut(model, anatomy, remove=anatomy.heads[:2])
        frozen = {name: model.get_parameter(name).clone() for name in shared}
        trained = attention_parameters(model, smaller)
        for site in anatomy.sites:
            model.get_submodule(site.output).weight.mul_(1.1)
    job = DistillJob(
        teacher=teacher,
        examples=[Example()] * 8,
        held_out=[],
        collate=lambda _examples: inputs,
        distance=lambda outputs, others, _inputs: (
            (outputs.logits - others.logits).square().flatten(1).mean(1)
        ),
        arguments=trainer_settings(
            pairs=["per_device_train_batch_size=1"],
            own={"max_steps": 3, "learning_rate": 1e-3},
            folder=tmp_path,
            device="cpu",
        ),
        progress=ConsoleProgress(quiet=True),
        lora=lora,
        trained=None if lora else trained,
        sample=inputs,
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, smaller, job)
    with torch.no_grad():
        assert torch.equal(teacher(**inputs).logits, expected)
    still = all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert still == (lora is None), "adapters are merged into weights that the teacher shared"
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved
    assert lora or moved <= trained
    assert all(value.requires_grad for value in model.parameters())


# What is refused, and what is said.


def test_a_training_that_can_not_fit_is_refused_before_any_work(there, command_line, monkeypatch):
    monkeypatch.setattr("headprune.distillation.memory.available_memory", lambda: 100_000)
    needed = {}
    for more in ((), ("--heal-weights", "attention"), ("--lora", "2")):
        code, _out, err = command_line(
            "prune", "m", *ROWS, *CUT, "--heal", "auto", "--out", "o", *more
        )
        assert code == 2
        assert "memory for healing, beside activations: the teacher" in err
        assert "scor" not in err.replace("scored", "")
        assert ("--lora 8" in err) == ("--lora" not in more)
        assert ("--heal-weights attention" in err.partition("try:")[2]) == (
            not more or "--lora" in more
        )
        needed[more] = float(err.partition("healing needs ")[2].split()[0])
    assert needed[()] >= max(needed.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--heal", "auto", "--dry-run"), "--heal has no effect here: no model is written"),
        (("--heal", "2", "--stream", "--scores", "s"), "--heal has no effect here: from file to file"),
        (("--lora", "2"), "--lora has no effect here: nothing is trained"),
        (("--heal", "none", "--heal-data", "x.txt"), "--heal-data has no effect here: nothing is trained"),
        (("--heal", "0"), "--heal can't be 0: auto or a number of steps, 1 or more, is wanted"),
        (("--heal", "much"), "--heal can't be 'much'"),
        (("--heal", "2", "--trainer", "wieght_decay=1"), "Trainer has no argument 'wieght_decay'"),
        (("--heal", "2", "--device", "spread"), "heal can't train on 'spread'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(words, message, here, command_line):
    code, out, err = command_line("prune", "m", "--data", "d.csv", "--keep", "0.5", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_from_file_to_file_nothing_is_healed_in_python_either(here):
    settings = Settings.of(model="m", keep=0.5, heal=True, out="o", scores="s.json")
    assert settings.distill.heal == "auto"
    with pytest.raises(ConfigError, match="nothing is trained"):
        prune(settings, progress=ConsoleProgress(quiet=True), show=lambda *_: None, stream=True)


@pytest.mark.parametrize(
    ("ends", "higher", "worse"),
    [((-0.3, -0.1), True, True), ((-0.3, 0.1), True, False), ((0.1, 0.3), True, False),
     ((0.1, 0.3), False, True), ((-0.1, 0.3), False, False)],
)  # fmt: skip
def test_a_loss_beyond_noise_ends_with_what_heals(ends, higher, worse, there, command_line):
    assert command_line("prune", "m", *ROWS, *CUT, "--out", "o")[0] == 0
    results = Results.model_validate(results_of("o"))
    after = results.after.model_copy(update={"higher_is_better": higher})
    results = results.model_copy(update={"difference_interval": ends, "after": after})
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(prune_table(results, directory="my model"))
    last = console.export_text().splitlines()[-1]
    assert last.startswith("heal it: " if worse else "or: ")
    assert ("headprune heal 'my model'" in last) == worse


# How much is kept.


class _Point(torch.nn.Module):
    def __init__(self, at):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(at))


@pytest.mark.parametrize(
    ("nearest", "share"), [(3.0, 1.0), (0.8, 0.75), (0.5, 0.5), (0.2, 0.25), (-1.0, 0.0)]
)
def test_what_is_kept_of_a_training_is_what_is_nearest_on_held_out_rows(nearest, share):
    """Weights go from (0, 0) to (1, 1); the teacher is at a point on that line, before its beginning or beyond its end."""
    model = _Point([1.0, 1.0])

    asked = []

    def away():
        asked.append(model.weight.detach()[0].item())
        return float((model.weight.detach() - nearest).square().sum())

    start = 2 * nearest**2
    found, distance = keep_nearest(model, {"weight": torch.zeros(2)}, away, start=start)
    assert found == share
    assert torch.equal(model.weight.detach(), torch.full((2,), share))
    kept_from = share or 1.0  # where nothing is kept, what it would have been is told
    assert distance == pytest.approx(2 * (kept_from - nearest) ** 2)
    assert (distance < start) == (share > 0)
    assert asked[:-1] == [one for one in SHARES if one > asked[-1]], "it stops where it gets worse"
    assert asked[-1] == max(0.25, share - 0.25)


def test_less_of_a_training_that_overshot_is_tried_on():
    """Its end, and what is a little before it, are worse than the start; a half is better, and a quarter best."""
    model = _Point([1.0, 1.0])
    at = {1.0: 10.0, 0.75: 10.5, 0.5: 1.0, 0.25: 0.8}
    found = keep_nearest(
        model, {"weight": torch.zeros(2)}, lambda: at[model.weight[0].item()], start=2.0
    )
    assert found == (0.25, 0.8)
    assert torch.equal(model.weight.detach(), torch.full((2,), 0.25))


def test_rows_that_chose_heads_do_not_decide_where_others_can(there, command_line):
    Path("more.csv").write_text("\n".join(["text", *sentences(100, seed=3)]))
    words = ("prune", "m", *ROWS, *CUT, "--heal", "2", "--heal-data", "more.csv", "--out", "o")
    code, out, err = command_line(*words, "--json")
    assert code == 0, err
    heal = json.loads(out)["heal"]
    assert (heal["trained_on"], heal["held_out"]) == (92, 8), "half of 16, and none of the 16"


@given(trained=st.integers(0, 60), fitted=st.integers(0, 12), held_out=st.integers(0, 9))
def test_rows_to_train_on_are_set_apart_to_decide_and_no_weight_was_fitted_on_them(
    trained, fitted, held_out
):
    examples = tuple(Example((f"text {number}",)) for number in range(trained + fitted + held_out))
    fresh, fit = examples[:trained], examples[trained : trained + fitted]
    none = Rows((), {})
    held, train = examples[trained + fitted :], Rows((*fresh, *fit), {"n": 1})
    parts = RowParts(Rows((*fit, *held), {}), fit, held, none, none, train)
    pool, apart = set_apart_of(parts)
    assert sorted((*pool, *apart), key=repr) == sorted(parts.train.examples, key=repr)
    assert set(apart) <= set(fresh)
    assert len(apart) == min((fitted + held_out) // 2, trained // 10)
    places = [fresh.index(one) for one in apart]
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert not steps or max(steps) - min(steps) <= 1, "evenly spread"
