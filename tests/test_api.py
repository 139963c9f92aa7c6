"""Python is the command line: the same settings, the same defaults, the same result; heads in any form."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import build, inspected, sentences, token_inputs
from safetensors.torch import load_file

import headprune as hp
from headprune.config import DEMO
from headprune.errors import ConfigError, PlanError
from headprune.planning.plan import make_plan
from headprune.report.terminal import ConsoleProgress
from headprune.runtime.journal import open_journal
from headprune.workflows.plan import plan_for
from headprune.workflows.prune import prune
from headprune.workflows.rows import Purpose, separate_rows
from headprune.workflows.score import score_each
from headprune.workflows.session import open_session

QUIET = ConsoleProgress(quiet=True)
SETTINGS = {
    "model": "model",
    "task": "classification",
    "data": "train.csv",
    "eval_data": "test.csv",
    "keep": 0.5,
    "batch_size": 1,
    "max_length": 16,
    "latency": False,
}


@pytest.fixture
def place(run_here, tokenizer, monkeypatch):
    """Return an empty directory with a model and two files of rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(run_here / ".cache"))
    build("bert").save_pretrained("model")
    tokenizer.save_pretrained("model")
    lines = [f"{text},{index % 2}\n" for index, text in enumerate(sentences(48))]
    (run_here / "train.csv").write_text("text,label\n" + "".join(lines[:32]))
    (run_here / "test.csv").write_text("text,label\n" + "".join(lines[32:]))
    return run_here


def results_of(directory):
    """Return what a plan says, and the weights, of a model that was saved."""
    return (directory / "plan.json").read_bytes(), (directory / "model.safetensors").read_bytes()


ON_THE_DEMO = {**DEMO.flat, "keep": 0.7, "num_samples": 64, "limit": 64, "latency": False}


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(SETTINGS, id="bert"),
        pytest.param(ON_THE_DEMO, id="demo", marks=[pytest.mark.nightly, pytest.mark.real_model]),
    ],
)
def test_the_same_settings_give_the_same_bytes_by_command_line_file_and_python(
    place, command_line, chosen
):
    model, keep = chosen["model"], chosen["keep"]
    words = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    words = [word for word in words if not word.startswith(("--model", "--latency"))]
    code, _out, err = command_line("prune", model, "--no-latency", *words, "--out", "by-words")
    assert code == 0, err
    (place / "settings.yaml").write_text(json.dumps({**chosen, "out": "by-file"}))
    code, _out, err = command_line("prune", "--config", "settings.yaml")
    assert code == 0, err
    settings = hp.Settings.of(**chosen, out="by-python")
    results = prune(settings, progress=QUIET, show=lambda _scores, _plan: None)
    assert results.removed
    assert results.reconstruct is not None
    by_words, by_file, by_python = (
        results_of(place / name) for name in ("by-words", "by-file", "by-python")
    )
    assert by_words == by_file == by_python
    if chosen is ON_THE_DEMO:
        return  # pairs of texts can't be told from plain batches

    # On the same rows, batch by batch, shrinking in memory removes the same heads and leaves the same weights.
    session = open_session(settings, progress=QUIET)
    rows = separate_rows(session).calibrate
    smaller, report = hp.shrink(
        session.model, session.batches(rows.examples), task=chosen["task"], keep=keep
    )
    assert tuple(map(str, report.plan.remove)) == results.removed
    assert report.reconstruct == results.reconstruct
    saved = load_file(place / "by-words" / "model.safetensors")
    own = smaller.state_dict()
    assert saved.keys() <= own.keys()
    assert all(torch.equal(value, own[name]) for name, value in saved.items())


def batch_of(rows=12):
    return {**token_inputs(rows=rows), "labels": torch.arange(rows) % 2}


def test_python_scores_by_what_the_command_scores_by():
    model = build("bert")
    scores = hp.score(model, [batch_of()], task="classification")
    assert scores.method == "unique"

    def loss(outputs, batch):
        assert torch.equal(batch["labels"], batch.targets)
        assert batch["input_ids"] is batch.inputs["input_ids"]
        return torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    assert hp.score(model, [batch_of()], loss=loss).values == scores.values


def test_a_loss_of_language_models_needs_no_labels():
    model = build("llama")
    scores = hp.score(model, [token_inputs()], task="causal-lm", method="gradient")
    assert len(set(scores.values)) == len(scores.heads)


def test_a_method_asks_for_what_it_needs_and_nothing_else():
    model = build("bert")
    assert hp.score(model, method="magnitude").n == 0
    assert hp.score(model, [token_inputs()], method="activation").n == 4
    with pytest.raises(ConfigError, match="asks how the loss changes"):
        hp.score(model, [token_inputs()])
    with pytest.raises(ConfigError, match="no method"):
        hp.score(model, method="magnitud")
    with pytest.raises(ConfigError, match="two texts"):
        hp.score(model, [token_inputs()], task="similarity")


def test_heads_are_named_in_any_form_and_mixed():
    model, inputs = build("bert"), token_inputs()
    anatomy = inspected(model)
    scores = hp.score(model, method="random")
    plan = hp.plan(scores, hp.Constraints(keep=0.8), anatomy=anatomy)
    one = hp.HeadId.parse("L0.H1")
    together = [*plan.remove, one, *(hp.HeadId.parse(f"L2.H{head}") for head in (3, 4))]
    forms = [
        [*map(str, together)],
        [plan, "L0.H1", {"L2": [3, 4]}],
        [plan, one, "L2.H3", hp.HeadId.parse("L2.H4")],
        anatomy.mask(together),
        anatomy.mask(together).expand(4, -1),
    ]
    outputs = []
    for form in forms:
        with hp.masked(model, form, anatomy=anatomy), torch.no_grad():
            outputs.append(model(**inputs).logits)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    smaller = hp.prune(model, forms[1])
    with torch.no_grad():
        assert torch.allclose(smaller(**inputs).logits, outputs[0], atol=1e-5)
    other = plan.model_copy(update={"model": {"fingerprint": "other"}})
    with pytest.raises(PlanError, match="another model"):
        hp.prune(build("bert"), [other, "L0.H1"])


def test_what_is_saved_is_described_where_a_plan_is_given(tmp_path):
    model = build("bert")
    anatomy = hp.inspect(model)
    scores = hp.score(model, method="magnitude")
    plan = hp.plan(scores, hp.Constraints(keep=0.5), anatomy=anatomy, model=model)
    hp.prune(model, plan)
    hp.save(model, tmp_path / "out", plan=plan, scores=scores)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plan.json", "scores.json", "results.json", "README.md", "manifest.json"} <= names
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["heads"] == [18, 9]
    assert results["before"] is results["after"] is None
    assert "9 attention heads fewer" in (tmp_path / "out" / "README.md").read_text()


def test_the_version_is_told():
    assert hp.__version__.count(".") == 2


@pytest.mark.parametrize("plan", [hp.Constraints(), hp.Constraints(max_drop="1%")])
def test_shrinking_takes_a_budget_that_a_plan_can_be_made_by(plan):
    with pytest.raises(PlanError, match="no budget that a plan can be made by"):
        hp.shrink(build("bert"), [batch_of()], task="classification", keep=plan)


def tolerant(**changes):
    """Return a session that may lose anything, and its rows."""
    asked = {**SETTINGS, "eval_data": None, "keep": None, "max_drop": "100000%", **changes}
    session = open_session(hp.Settings.of(**asked), progress=ConsoleProgress(quiet=True))
    return session, separate_rows(session, Purpose(decides=True))


def test_a_file_s_methods_to_compare_say_nothing_of_how_one_cut_is_scored(place, command_line):
    file = {**SETTINGS, "method": "gradient", "steps": 2, "methods": ["magnitude", "random"]}
    (place / "settings.yaml").write_text(json.dumps(file))
    code, _out, err = command_line("prune", "--config", "settings.yaml", "--dry-run")
    assert code == 0, err


def test_scores_towards_the_deepest_cut_serve_the_next_run_within_a_tolerance(place):
    session, parts = tolerant(reconstruct="none", num_samples=8)
    scored, _plan = plan_for(session, parts, show=lambda *_: None, keep_parts=False)
    assert scored.scores.steps is not None
    (place / "scores.json").write_text(scored.scores.to_json())
    session, parts = tolerant(reconstruct="none", num_samples=8, scores="scores.json")
    said = []
    session = replace(session, progress=SimpleNamespace(notify=said.append, track=QUIET.track))
    plan_for(session, parts, show=lambda *_: None, keep_parts=False)
    assert any("scores.json" in text for text in said)
    assert not [text for text in said if "careful" in text]


def test_within_a_tolerance_only_cuts_that_are_looked_at_are_planned(place, monkeypatch):
    made = []

    def counted(scores, *others, **settings):
        made.append(scores.method)
        return make_plan(scores, *others, **settings)

    monkeypatch.setattr("headprune.workflows.plan.make_plan", counted)
    session, parts = tolerant(method="magnitude", reconstruct="none")
    _scored, plan = plan_for(session, parts, show=lambda *_: None, keep_parts=False)
    assert made.count("magnitude") == len(plan.budget["looks"]) < 6


def test_a_sweep_keeps_its_work_beside_the_runs_and_names_settings_left_aside(
    place, command_line, monkeypatch
):
    folders = []

    def opened(folder, **facts):
        folders.append(str(folder))
        return open_journal(folder, **facts)

    monkeypatch.setattr("headprune.workflows.score.open_journal", opened)
    (place / "settings.yaml").write_text(json.dumps({**SETTINGS, "run_dir": "mine"}))
    options = ("--methods", "gradient", "--points", "0.5", "--no-latency")
    options += ("--config", "settings.yaml")
    code, _out, err = command_line("sweep", *options)
    assert code == 0, err
    assert folders == ["headprune-runs"]
    assert "its own points and scores: --keep" in " ".join(err.split())


@pytest.mark.parametrize("objective", ["metric", "distill"])
def test_scores_in_memory_are_about_what_is_asked_as_those_of_the_command(objective, place):
    settings = hp.Settings.of(**SETTINGS, method="ablation", objective=objective)
    session = open_session(settings, progress=QUIET)
    rows = separate_rows(session).calibrate
    batches = session.batches(rows.examples)
    (one,) = score_each(session, (settings.score,), rows, plan=settings.plan).values()
    spec = hp.ScoreSpec(method="ablation", objective=objective)
    scores = hp.score(session.model, batches, task="classification", method=spec)
    assert scores.values == one.scores.values
    assert (scores.objective, scores.metric) == (one.scores.objective, one.scores.metric)
    assert (
        scores.values
        != hp.score(session.model, batches, task="classification", method="ablation").values
    )
    with pytest.raises(ConfigError, match="takes a task"):
        hp.score(session.model, batches, loss=lambda *_: torch.zeros(1), method=spec)


def test_a_metric_that_can_not_be_computed_is_refused_before_the_model_is_loaded(
    place, command_line, monkeypatch
):
    loads = []
    monkeypatch.setattr("headprune.workflows.session.load_model", lambda *_a, **_k: loads.append(1))
    (place / "broken.py").write_text("raise RuntimeError('broken')\n")
    options = ("--data", "train.csv", "--metric", "./broken.py", "--higher-is-better")
    code, _out, err = command_line("eval", "model", *options)
    assert code == 2
    assert "can't be loaded" in err
    assert not loads


def test_shrinking_reconstructs_whatever_heads_are_scored_by():
    settings = hp.Settings.of(method="magnitude", reconstruct="refit")
    _model, report = hp.shrink(
        build("bert"), [batch_of()], task="classification", keep=0.5, settings=settings
    )
    assert report.scores.n == 0
    assert report.reconstruct is not None


@pytest.mark.parametrize("method", ["magnitude", "unique"])
def test_batches_that_can_not_be_divided_are_not_reconstructed_on(method):
    """No row would be held out, to say whether it helped."""
    whole = batch_of()
    packed = {**whole, "position_ids": torch.arange(whole["input_ids"].shape[1])[None]}
    settings = hp.Settings.of(method=method, reconstruct="refit")
    found = []
    for batch in (whole, packed):
        _model, report = hp.shrink(
            build("bert"), [batch], task="classification", keep=0.5, settings=settings
        )
        found.append(report.reconstruct)
    assert found[0] is not None
    assert found[1] is None


def test_shrinking_creates_biases_where_it_is_allowed_to_and_takes_back_those_that_nothing_moved():
    for method, is_there in (("bias", True), ("scale", False)):
        model = build("llama")
        settings = hp.Settings.of(method="random", reconstruct=method, allow_bias=True)
        batches = [token_inputs(rows=32)]
        smaller, report = hp.shrink(model, batches, task="causal-lm", keep=0.5, settings=settings)
        assert report.reconstruct is not None
        is_kept = is_there and report.reconstruct.kept is not None
        assert smaller.config.attention_bias is is_kept
        assert report.reconstruct.tried


def test_shrinking_keeps_heads_that_the_model_s_settings_name(monkeypatch):
    model = build("bert")
    named = [hp.HeadId.parse("L0.H1"), hp.HeadId.parse("L2.H0")]
    monkeypatch.setattr("headprune.workflows.stepwise.named_heads", lambda *_: named)
    settings = hp.Settings.of(method="random", reconstruct="none")
    for seed in range(2):
        seeded = settings.replaced(seed=seed)
        model = build("bert")
        _smaller, report = hp.shrink(
            model, [batch_of()], task="classification", keep=0.25, settings=seeded
        )
        assert not {*named} & {*report.plan.remove}


@pytest.mark.parametrize("command", ["prune", "run"])
def test_a_file_s_baseline_is_left_aside_where_nothing_is_measured(command, place, command_line):
    scores = hp.score(hp.load("model"), method="magnitude")
    (place / "scores.json").write_text(scores.to_json())
    classes = ("--data", "train.csv", "--max-length", "16", "--no-latency")
    update = ("check", "model", *classes, "--baseline", "base.json", "--update-baseline")
    code, _out, err = command_line(*update)
    assert code == 0, err
    file = {
        "model": "model",
        "keep": 0.5,
        "scores": "scores.json",
        "check": {"baseline": "base.json"},
    }
    (place / "r.yaml").write_text(json.dumps(file))
    words = ("run", "r.yaml") if command == "run" else ("prune", "--config", "r.yaml")
    code, _out, err = command_line(*words, "--stream", "--out", "small")
    assert code == 2
    assert "leave out --stream, or say --no-baseline" in " ".join(err.split())
    code, _out, err = command_line(*words, "--stream", "--no-baseline", "--out", "small")
    assert code == 0, err
    assert (place / "small" / "plan.json").is_file()
