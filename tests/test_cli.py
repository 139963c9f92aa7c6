"""The command line as a user meets it: exit codes, streams, and messages that say what, where and what to do."""

import errno
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from families import build, sentences
from rich.console import Console

import headprune as hp
from headprune.config import Constraints, Settings
from headprune.config.checks import methods_of
from headprune.evaluation import metric_with_interval, predict
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores
from headprune.report.heads import agreement_table
from headprune.report.terminal import ConsoleProgress
from headprune.runtime.journal import Journal
from headprune.scoring.catalogue import METHODS, Method
from headprune.scoring.request import Estimate
from headprune.tasks.catalogue import METRICS, TASKS, MetricRow
from headprune.tasks.rows import noted_rows
from headprune.tasks.task import get_task
from headprune.workflows.plan import plan_for
from headprune.workflows.rows import Purpose, separate_rows
from headprune.workflows.score import score_each
from headprune.workflows.session import open_session


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("models") / "classifier"
    names = {0: "no", 1: "yes"}
    model = build("bert", id2label=names, label2id={"no": 0, "yes": 1})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("models") / "decoder"
    build("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def place(run_here, classifier, decoder, monkeypatch):
    """Return an empty directory with two models and some data in it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(run_here / ".cache"))
    shutil.copytree(classifier, run_here / "classifier")
    shutil.copytree(decoder, run_here / "decoder")
    rows = [(text, ("no", "yes")[index % 2]) for index, text in enumerate(sentences(40))]
    (run_here / "data.csv").write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in rows))
    (run_here / "prose.txt").write_text("\n".join(sentences(60, seed=1)))
    return run_here


@pytest.fixture
def headprune(place, command_line):
    """Return what runs the command line, where the models and the data are."""
    return command_line


def test_the_whole_journey(headprune, place):
    data = ("--data", "data.csv", "--batch-size", "7")
    code, out, err = headprune("score", "classifier", *data)
    assert code == 0, err
    assert "L2" in out
    assert "least important" in out
    assert "label 'label'" in err
    assert (place / "headprune-runs" / "001-unique" / "scores.json").is_file()

    latest = ("--keep", "0.5", "--scores", "latest")
    code, out, err = headprune("prune", "classifier", *data, *latest, "--json")
    assert code == 0, err
    results = json.loads(out)
    assert "headprune-runs/001-unique" in err, "the latest run's scores are used"
    assert [proof["passed"] for proof in results["proofs"]] == [True, True, True]
    assert results["after"]["heads"] == 9
    assert results["after"]["n"] == results["before"]["n"] == 20
    assert results["calibration"]["fingerprint"] != results["after"]["data"]["fingerprint"]
    model = place / "headprune-models" / "classifier-keep-0.5"
    for name in (
        "plan.json",
        "scores.json",
        "results.json",
        "README.md",
        "manifest.json",
        "headprune.yaml",
    ):
        assert (model / name).is_file()
    card = (model / "README.md").read_text()
    assert card.startswith("---\n")
    assert "trust_remote_code=True" in card
    assert "9 attention heads fewer" in card

    code, out, err = headprune("eval", model, "--data", "data.csv", "--json")
    assert "data.csv: 40 rows, text 'text', label 'label'" in err
    assert code == 0, err
    assert json.loads(out)["heads"] == 9
    (place / "eval.json").write_text(out)

    check = ("check", "classifier", "--data", "data.csv", "--baseline", "baseline.json")
    assert headprune(*check, "--update-baseline")[0] == 0
    code, out, err = headprune(*check, "--max-drop", "0")
    assert code == 0, err
    assert "passed" in out
    code, out, err = headprune(
        "check", "eval.json", "--baseline", "baseline.json", "--max-parameters", "10"
    )
    assert code == 1
    assert "FAIL  max-parameters" in out
    code, out, err = headprune("check", model / "results.json", "--baseline", "baseline.json")
    assert code == 2, "the held-out half is other data than the whole file"
    assert "can't be compared" in err

    # Prune the pruned model again: names stay, and the card says what it came from.
    code, out, err = headprune("prune", model, *data, "--keep", "0.5", "--out", "twice", "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["after"]["heads"] in (4, 5)
    assert not set(again["removed"]) & set(results["removed"])
    assert again["after"]["model"]["source"]["name"] == "classifier"


@pytest.mark.parametrize("mode", ["group", "even"])
def test_a_decoder_goes_the_whole_way_too(headprune, place, mode):
    code, out, err = headprune(
        "prune",
        "decoder",
        "--data",
        "prose.txt",
        "--max-length",
        "16",
        "--keep",
        "0.5",
        "--gqa",
        mode,
        "--out",
        mode,
        "--json",
    )
    assert code == 0, err
    results = json.loads(out)
    assert results["after"]["heads"] == 12
    assert results["before"]["metric"] == "perplexity"
    plan = json.loads((place / mode / "plan.json").read_text())
    assert all(kept % (4 if mode == "even" else 2) == 0 for kept in plan["kept_per_site"].values())
    before, after = (results[when]["kv_cache_bytes_per_token"] for when in ("before", "after"))
    assert before - after == plan["budget"]["saves"]["kv_cache_bytes_per_token"]
    assert (after < before) is (mode == "group")


def test_a_uniform_plan_needs_no_extra_file(headprune, place):
    code, out, err = headprune(
        "prune",
        "decoder",
        "--data",
        "prose.txt",
        "--max-length",
        "16",
        "--keep",
        "0.75",
        "--uniform",
        "--out",
        "u",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["loads_with"] == "stock"
    assert not list((place / "u").glob("*.py"))


def test_a_pruned_decoder_goes_out_as_gguf(headprune, place):
    data = ("--data", "prose.txt", "--max-length", "16")
    assert headprune("prune", "decoder", *data, "--keep", "0.5", "--out", "small")[0] == 0
    export = ("export", "small", "--gguf", "small.gguf", "--no-tokenizer")
    code, out, err = headprune(*export, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert sum(made["heads"]) == 12
    assert made["bytes"] == (place / "small.gguf").stat().st_size
    assert made["proofs"][0]["passed"] is True
    code, out, err = headprune(*export, "--overwrite", "--dtype", "bfloat16")
    assert code == 0, err
    assert "bfloat16" in out
    assert "read back bit for bit" in out


def test_a_file_that_is_not_the_model_is_exit_1(headprune, place, monkeypatch):
    monkeypatch.setattr("headprune.export.gguf._interleave", lambda rows, heads: rows)
    code, _out, err = headprune("export", "decoder", "--gguf", "x.gguf", "--no-tokenizer")
    assert code == 1
    assert "'file == model' failed" in err
    assert not list(place.glob("*x.gguf*"))


def test_a_dry_run_writes_no_model(headprune, place):
    code, out, err = headprune(
        "prune", "classifier", "--data", "data.csv", "--keep", "0.5", "--dry-run", "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["remove"]) == 9
    assert not (place / "headprune-models").exists()


def test_the_pruned_model_is_within_its_budget(headprune, place):
    data = ("--data", "data.csv", "--batch-size", "8", "--json")
    (place / "headprune.yaml").write_text("model: classifier\nkeep: 0.9\n")
    code, out, err = headprune("prune", *data, "--target-parameters", "85%", "--multiple-of", "2")
    assert code == 0, err
    results = json.loads(out)
    made = place / "headprune-models" / "classifier-parameters-85pct"
    plan = json.loads((made / "plan.json").read_text())
    before, after = (results[when]["parameters"] for when in ("before", "after"))
    assert (plan["budget"]["before"], plan["budget"]["after"]) == (before, after)
    assert after <= 0.85 * before
    assert f"{after:,} parameters left of {before:,} parameters" in err
    assert all(kept % 2 == 0 for kept in plan["kept_per_site"].values())
    assert "target_parameters: 85%" in (made / "headprune.yaml").read_text()
    code, out, err = headprune("prune", *data, "--heads", "7", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["budget"]["heads_after"] == 7
    code, _out, err = headprune(
        "prune", "--json", "--target-latency", "80%", "--stream", "--dry-run",
        "--scores", str(made / "scores.json"),
    )  # fmt: skip
    assert code == 2
    assert "from file to file no model is loaded" in err


def test_what_is_left_may_be_reconstructed(headprune, place):
    data = ("--data", "data.csv", "--batch-size", "8")
    code, out, err = headprune(
        "prune", "classifier", *data, "--keep", "0.4", "--reconstruct", "refit", "--json"
    )
    assert code == 0, err
    results = json.loads(out)
    assert (results["reconstruct"]["fitted_on"], results["reconstruct"]["held_out"]) == (15, 5)
    assert all(proof["passed"] for proof in results["proofs"])
    kept = results["reconstruct"]["kept"]
    assert ("not reconstructed: " in err) == (kept is None)
    card = (place / "headprune-models" / "classifier-keep-0.4" / "README.md").read_text()
    assert ("reconstructed in closed form" in card) == (kept is not None)
    code, _out, err = headprune("prune", "classifier", "--keep", "0.4", "--reconstruct", "refit", "--stream",
                                "--scores", "headprune-models/classifier-keep-0.4/scores.json", "--out", "x")  # fmt: skip
    assert code == 2
    assert "--reconstruct" in err


def test_a_pruned_model_heals_and_what_it_learned_from_never_reports(headprune, place):
    texts = sentences(40)  # those of data.csv
    rows = [(text, ("no", "yes")[index % 2]) for index, text in enumerate(sentences(30, seed=5))]
    (place / "test.csv").write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in rows))
    data = ("--data", "data.csv", "--eval-data", "test.csv")
    words = ("prune", "classifier", *data, "--keep", "0.4", "--num-samples", "16", "--out", "small")
    assert headprune(*words)[0] == 0
    pruned = json.loads((place / "small" / "results.json").read_text())

    # Rows without labels will do.
    train = (
        "--learning-rate",
        "1e-4",
        "--max-steps",
        "4",
        "--lora",
        "2",
        "--trainer",
        "save_steps=4",
    )
    other = ("--data", "texts.csv", "--eval-data", "test.csv", "--run-dir", "run")
    (place / "texts.csv").write_text("text\n" + "\n".join(t for t, _n in rows[:9]) + "\n")
    code, _out, err = headprune("heal", "small", *other, *train)
    assert code == 2, "the evaluation rows contain these"
    assert "every row of the data is an evaluation row too" in err
    (place / "texts.csv").write_text("text\n" + "\n".join(texts[:20]) + "\n")
    code, out, err = headprune("heal", "small", *other, *train, "--json")
    assert code == 0, err
    results = json.loads(out)
    assert results["before"]["value"] == pruned["after"]["value"]
    assert results["after"]["heads"] == pruned["after"]["heads"]
    assert results["after"]["n"] == pruned["after"]["n"] == 30
    assert results["proofs"][0]["name"] == "merged == adapters"
    assert [proof["passed"] for proof in results["proofs"]] == [True] * 4
    heal = results["heal"]
    assert heal["teacher"]["name"] == "classifier"
    assert ("careful: it didn't heal" in err) == (heal["loss"][1] >= heal["loss"][0])
    assert (heal["trained_on"], heal["held_out"], heal["steps"]) == (18, 2, 4)
    assert (place / "run" / "checkpoint-4").is_dir()
    assert "# small, healed" in (place / "small-healed" / "README.md").read_text()

    # Neither what chose its heads nor what it was trained on reports from now on.
    chose = set(json.loads((place / "small" / "scores.json").read_text())["rows"])
    assert chose < set(heal["rows"])
    assert 20 < len(heal["rows"]) < 36
    _code, _out, err = headprune("eval", "small-healed", "--data", "data.csv", "--json")
    assert f"careful: {len(heal['rows'])} of these 40 rows" in err

    code, _out, err = headprune("heal", "small-healed", *other, *train, "--out", "third")
    assert code == 2
    assert "run holds checkpoints" in err
    (place / "classifier").rename(place / "moved")
    code, _out, err = headprune("heal", "small-healed", "--out", "third")
    assert code == 2
    assert "data as in small-healed/headprune.yaml" in err
    assert "classifier, which small-healed was pruned from, can't be had" in err


def test_a_decoder_heals_where_it_was_stopped(headprune, place, tokenizer, monkeypatch):
    from headprune.distillation import trainer

    model = build("llama")
    hp.prune(model, [f"L{layer}.H{head}" for layer in range(3) for head in (0, 1)])
    hp.save(model, place / "s", tokenizer=tokenizer)
    data = ("--data", "prose.txt", "--max-length", "16", "--num-samples", "40")
    heal = (
        "heal",
        "s",
        *data,
        "--teacher",
        "decoder",
        "--max-steps",
        "4",
        "--trainer",
        "save_steps=2",
    )
    real = trainer.Distillation.compute_loss

    def stop(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Distillation, "compute_loss", stop)
        code, _out, err = headprune(*heal)
    assert code == 130
    assert "--resume goes on" in err
    assert not (place / "s-healed").exists()
    code, _out, err = headprune(*heal, "--epochs", "9", "--resume")
    assert code == 2
    assert "another training (settings" in err
    code, out, err = headprune(*heal, "--resume")
    assert code == 0, err
    assert "going on from headprune-runs/heal-s-healed/checkpoint-2" in err
    assert "all weights trained towards decoder: 4 steps on" in out
    assert "KL divergence on" in out
    assert "rows that chose no head and that nothing was trained on" in out
    assert not list((place / "s-healed").glob("*.py")), "a stock model stays one"
    assert not (place / "headprune-runs" / "heal-s-healed").exists()


def test_heads_may_go_in_steps(headprune, place):
    data = ("--data", "data.csv", "--batch-size", "8")
    steps = ("--steps", "3", "--keep", "0.5")
    code, out, err = headprune("score", "classifier", *data, *steps, "--json")
    assert code == 0, err
    assert "scoring the 12 heads that are left" in err
    assert json.loads(out)["steps"]["count"] == 3
    assert not list(place.glob("headprune-runs/partial"))
    scores = json.loads(out)
    went = {
        head for head, step in zip(scores["heads"], scores["steps"]["went"], strict=True) if step
    }
    latest = ("--scores", "latest", "--dry-run")
    for words in ((*steps, "--dry-run"), ("--keep", "0.5", *latest)):
        code, out, err = headprune("prune", "classifier", *data, *words, "--json")
        assert code == 0, err
        assert set(json.loads(out)["remove"]) == went
    code, _out, err = headprune("prune", "classifier", *data, "--keep", "0.6", *latest)
    assert code == 2
    assert "these heads were scored in 3 steps" in err, "steps lead to one cut"
    named = ("--scores", "headprune-runs/001-unique/scores.json")
    code, _out, err = headprune("prune", "classifier", *data, *named, "--keep", "0.6", "--dry-run")
    assert "careful: these heads were scored in 3 steps for keep=0.5" in err
    code, _out, err = headprune("score", "classifier", *data, "--steps", "3")
    assert code == 2
    assert "--keep" in err


def test_heads_go_as_far_as_the_metric_allows(headprune, place):
    data = ("--data", "data.csv", "--batch-size", "8", "--method", "gradient", "--steps", "1")
    code, out, err = headprune("prune", "classifier", *data, "--max-drop", "200%", "--json")
    assert code == 0, err
    assert "8 rows score, 12 decide how far to go" in err
    made = place / "headprune-models" / "classifier-max-drop-200pct"
    budget = json.loads((made / "plan.json").read_text())["budget"]
    assert budget["max_drop"] == "200%"
    assert budget["decided_on"] == 12
    # Everything is allowed: the last look is at the deepest cut that leaves a head in every layer.
    assert budget["keep"] == budget["looks"][-1]["keep"] == 0.17
    results, scores = json.loads(out), json.loads((made / "scores.json").read_text())
    assert len(scores["rows"]) == 20
    assert results["after"]["n"] == 20
    left = budget["whole"]["parameters"] - budget["saves"]["parameters"]  # what --dry-run shows
    assert left == results["after"]["parameters"]
    assert "a drop of -0 at most" not in err
    prose = ("--data", "prose.txt", "--max-length", "16", "--method", "magnitude")
    code, _out, err = headprune("prune", "decoder", *prose, "--max-drop", "0", "--dry-run")
    assert code == 2
    assert "no cut stays within a drop of 0" in err


@pytest.mark.parametrize(("model", "data"), [("classifier", "data.csv"), ("decoder", "prose.txt")])
def test_a_drop_is_how_much_worse_the_metric_is_on_the_rows_that_decide(place, model, data):
    """By hand, for a metric that rises and one that falls; the three kinds of rows have no input in common."""
    settings = {
        "max_length": 16,
        "method": "magnitude",
        "reconstruct": "none",
        "max_drop": "100000%",
    }
    asked = Settings.of(model=str(place / model), data=str(place / data), batch_size=8, **settings)
    progress = ConsoleProgress(quiet=True, verbose=False)
    session = open_session(asked, progress=progress)
    parts = separate_rows(session, Purpose(decides=True))
    kinds = (parts.calibrate, parts.decide, parts.report)
    inputs = [{example.input_digest for example in rows.examples} for rows in kinds]
    assert not inputs[0] & inputs[1]
    assert not inputs[2] & (inputs[0] | inputs[1])
    scored, plan = plan_for(session, parts, show=lambda *_: None, keep_parts=False)
    assert set(noted_rows(kinds[1].examples)) <= set(scored.scores.rows)
    batches = session.batches(kinds[1].examples)
    whole = predict(session.model, session.task, batches=batches)
    with hp.masked(session.model, plan.remove, anatomy=session.anatomy):
        left = predict(session.model, session.task, batches=batches)
    values = [metric_with_interval(found, session.metric, seed=0).value for found in (whole, left)]
    worse = values[1] - values[0] if model == "decoder" else values[0] - values[1]
    last = plan.budget["looks"][-1]
    assert last["drop"] == pytest.approx(worse, rel=1e-6, abs=1e-9)
    assert all(look["worst"] >= look["drop"] for look in plan.budget["looks"])
    assert any(look["worst"] > look["drop"] for look in plan.budget["looks"])


def test_prune_takes_the_scores_of_its_method_from_a_run_of_several(headprune):
    words = ("classifier", "--data", "data.csv", "--method")
    assert headprune("score", *words, "fisher,gradient")[0] == 0
    cut = ("--keep", "0.5", "--steps", "1", "--reconstruct", "none", "--dry-run")
    code, _out, err = headprune("prune", *words, "gradient", *cut, "--scores", "latest")
    assert code == 0, err
    assert "scores.gradient.json (gradient, n = 20)" in err.replace("\n", " ")


def test_a_recipe_runs_all_stages_and_checks(headprune, place):
    (place / "r.yaml").write_text(
        "model: classifier\ndata: data.csv\neval_data: data2.csv\n"
        "keep: 0.9\nout: made\ncheck: {baseline: base.json, max_drop: 1}\n"
    )
    rows = [(text, ("no", "yes")[index % 2]) for index, text in enumerate(sentences(30, seed=5))]
    (place / "data2.csv").write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in rows))
    update = ("check", "classifier", "--config", "r.yaml", "--update-baseline")
    assert headprune(*update)[0] == 0
    code, out, err = headprune("run", "r.yaml")
    assert code == 0, err
    assert "check passed" in out
    assert "made" in out


def test_the_same_command_gives_the_same_bytes(headprune, place):
    words = ("score", "classifier", "--data", "data.csv")
    assert headprune(*words, "--run-dir", "one")[0] == headprune(*words, "--run-dir", "two")[0] == 0
    assert (place / "one" / "scores.json").read_bytes() == (
        place / "two" / "scores.json"
    ).read_bytes()


def test_json_leaves_stdout_clean(headprune):
    for words in (
        ("score", "classifier", "--data", "data.csv"),
        ("inspect", "decoder"),
        ("eval", "classifier", "--data", "data.csv"),
    ):
        code, out, err = headprune(*words, "--json")
        assert code == 0, err
        assert json.loads(out)["format"] == 1
        assert "\x1b" not in out + err


def test_rows_behind_named_scores_never_report(headprune, place):
    data = ("--data", "data.csv")
    assert headprune("score", "classifier", *data, "--num-samples", "20", "--run-dir", "r")[0] == 0
    chose = set(json.loads((place / "r" / "scores.json").read_text())["rows"])
    assert len(chose) == 20
    code, out, err = headprune(
        "prune",
        "classifier",
        *data,
        "--num-samples",
        "4",
        "--scores",
        "r/scores.json",
        "--keep",
        "0.5",
        "--json",
    )
    assert code == 0, err
    assert "16 evaluation rows chose heads before; left out" in err
    assert json.loads(out)["after"]["n"] == 20


def test_lines_in_both_files_do_not_choose(headprune, place):
    lines = (place / "prose.txt").read_text().splitlines()
    (place / "part.txt").write_text("\n".join(lines[3:20]))
    code, _out, err = headprune(
        "prune",
        "decoder",
        "--data",
        "prose.txt",
        "--eval-data",
        "part.txt",
        "--max-length",
        "16",
        "--keep",
        "0.5",
        "--dry-run",
    )
    assert code == 0, err
    assert "17 calibration rows are evaluation rows too; left out" in err


def test_eval_and_prune_read_the_same_rows(headprune, place):
    shutil.copy(place / "data.csv", place / "other.csv")
    (place / "r.yaml").write_text(
        "model: classifier\ndata: prose.txt\neval_data: data.csv\nsplit: train\n"
    )
    code, out, err = headprune("eval", "--config", "r.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["data"]["name"] == "data.csv"


def test_methods_without_data_need_none(headprune, place):
    code, out, err = headprune(
        "score", "classifier", "--method", "magnitude", "--task", "classification", "--json"
    )
    assert code == 0, err
    scores = json.loads(out)
    assert (scores["n"], scores["data"], scores["rows"]) == (0, {}, [])


def test_several_methods_score_as_each_does_alone(headprune, place):
    words = ("score", "classifier", "--data", "data.csv", "--json", "--method")
    methods = ("fisher", "gradient:batch", "entropy", "magnitude")
    code, out, err = headprune(*words, ",".join(methods), "--run-dir", "together")
    assert code == 0, err
    together = json.loads(out)
    assert [scores["method"] for scores in together] == list(methods)
    for scores in together:
        code, out, err = headprune(*words, scores["method"])
        assert code == 0, err
        assert json.loads(out) == scores
        word = scores["method"].replace(":", "-")
        name = "scores.json" if word == "fisher" else f"scores.{word}.json"
        assert json.loads((place / "together" / name).read_text(encoding="utf-8")) == scores
    assert not list(place.rglob("partial"))


def test_several_methods_run_what_they_share_once(place):
    progress = ConsoleProgress(quiet=True, verbose=False)
    runs = {}
    for methods in (("fisher",), ("fisher", "gradient", "gradient:batch", "fisher:batch")):
        asked = Settings.of(
            model=str(place / "classifier"),
            data=str(place / "data.csv"),
            seed=len(methods),
            methods=methods,
        )
        session = open_session(asked, progress=progress)
        rows = separate_rows(session, Purpose(reports=False)).calibrate
        assert session.anatomy.heads
        forwards = []
        session.model.register_forward_pre_hook(lambda *_, count=forwards: count.append(1))
        found = score_each(session, methods_of(asked.score), rows, plan=asked.plan)
        assert tuple(found) == methods
        runs[methods] = len(forwards)
    alone, together = runs.values()
    assert together == alone > 0


def test_methods_agree_as_far_as_their_orders_do():
    heads = tuple(HeadId(SiteId("", 0, "self"), head) for head in range(3))
    found = [
        HeadScores(method=method, heads=heads, values=values, n=1, seed=0)
        for method, values in (
            ("sink", (1.0, 2.0, 9.0)),
            ("gates", (0.3, 0.2, 0.1)),
            ("fisher", (5.0, 5.0, 5.0)),
        )
    ]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(agreement_table(found))
    rows = [line.split() for line in shown.get().splitlines()[1:]]
    assert rows[0] == ["sink", "1.00", "-1.00", "-"]
    assert rows[1] == ["gates", "-1.00", "1.00", "-"]


def test_several_methods_are_shown_beside_each_other(headprune, place):
    words = ("classifier", "--method", "magnitude,random", "--task", "classification")
    code, out, err = headprune("score", *words)
    assert code == 0, err
    assert "same order (Spearman)" in out
    assert "scores.random.json" in err.replace("\n", "")
    code, out, err = headprune("score", "classifier", "--method", "magnitude,fischer")
    assert code == 2
    assert "there is no method 'fischer'" in err
    assert "did you mean 'fisher'" in err


def by_position(request):
    """A scoring method: later heads matter more."""
    values = torch.arange(len(request.anatomy.heads)).double()
    return Estimate(values, None, request.num_examples)


def test_a_method_is_one_row_and_one_function(headprune, place, monkeypatch):
    row = Method(
        name="position",
        function=f"{__name__}:by_position",
        help="where the head is",
        cost="nothing",
        use="test the catalogue",
    )
    monkeypatch.setitem(METHODS, row.name, row)
    words = ("classifier", "--data", "data.csv", "--method", "position")
    code, out, err = headprune("score", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["values"] == [float(place) for place in range(18)]
    code, out, err = headprune("prune", *words, "--keep", "0.5", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["remove"][0] == "L0.H0"


def build_polarity(row, **_model):
    """A task: how sure a classifier is of its last class, against numbers."""
    classification = get_task("classification")

    def sure(outputs, batch):
        return outputs.logits.softmax(-1)[:, -1], batch.targets

    return replace(classification, row=row, predict=sure)


def brier(predictions, references):
    """A metric: the mean squared difference."""
    return float(((predictions - references) ** 2).mean())


def test_a_task_and_a_metric_are_one_row_and_one_function_each(headprune, place, monkeypatch):
    task = replace(
        TASKS["classification"],
        name="polarity",
        help="how sure a classifier is of its last class",
        function=f"{__name__}:build_polarity",
        metric="brier",
        predicts="numbers",
    )
    metric = MetricRow(
        name="brier",
        help="mean squared difference",
        function=f"{__name__}:brier",
        higher_is_better=False,
        takes=("numbers",),
    )
    monkeypatch.setitem(TASKS, task.name, task)
    monkeypatch.setitem(METRICS, metric.name, metric)
    words = ("classifier", "--data", "data.csv", "--task", "polarity")
    code, out, err = headprune("eval", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["metric"], found["higher_is_better"]) == ("brier", False)
    assert (found["seed"], found["resamples"]) == (0, 1000)
    assert found["interval"][0] < found["value"] < found["interval"][1]
    pruned = ("prune", *words, "--method", "magnitude", "--keep", "0.5", "--json")
    code, out, err = headprune(*pruned)
    assert code == 0, err
    assert json.loads(out)["after"]["metric"] == "brier"
    code, _out, err = headprune("eval", *words, "--metric", "accuracy")
    assert code == 2
    assert "accuracy compares classes, and the task predicts numbers" in err
    assert "brier" in err


def test_scores_that_depend_on_batches_serve_the_same_batches_only(headprune, place):
    words = ("classifier", "--data", "data.csv", "--limit", "8", "--method", "gates")
    assert headprune("score", *words, "--batch-size", "4")[0] == 0
    for size, expected in (("4", 0), ("2", 2)):
        latest = ("--scores", "latest", "--keep", "0.5", "--dry-run", "--batch-size", size)
        code, _out, err = headprune("prune", *words, *latest)
        assert code == expected, err
        assert ("batch size: the scores have 4, the settings 2" in err) == (expected == 2)


SCORED = ("classifier", "--data", "data.csv", "--method", "ablation", "--objective", "metric")


@pytest.mark.parametrize(
    ("scored", "asked", "difference"),
    [
        (("--seed", "1"), ("--seed", "2"), "seed: the scores have 1, the settings 2"),
        (("--metric", "accuracy"), ("--metric", "f1"), "metric: the scores have accuracy"),
        ((), ("--objective", "loss"), "objective: the scores have metric"),
        ((), ("--num-samples", "9"), "rows (fingerprint)"),
        ((), ("--max-length", "9"), "max length"),
        ((), ("--method", "fisher", "--objective", "loss"), "no scores by fisher|method: the"),
        (("--objective", "loss", "--normalize", "layer"), ("--objective", "loss"), "normalisation"),
    ],
)
def test_scores_of_an_earlier_run_serve_when_asked_for_and_the_same(
    headprune, place, scored, asked, difference
):
    """Whatever differs is named; unasked they never serve; a file that is named does, and the difference is said."""
    assert headprune("score", *SCORED, *scored)[0] == 0
    prune = ("prune", *SCORED, "--keep", "0.5", "--reconstruct", "none", "--dry-run", "--json")
    same = headprune(*prune, *scored, "--scores", "latest")
    assert same[0] == 0, same[2]
    code, _out, err = headprune(*prune, *asked, "--scores", "latest")
    assert code == 2
    assert any(part in err for part in difference.split("|")), err
    (run,) = place.glob("headprune-runs/*/scores.json")
    code, _out, err = headprune(*prune, *asked, "--scores", run)
    assert code == 0, err
    assert "careful: " in err
    anew = headprune(*prune, *asked)
    assert anew[0] == 0, anew[2]
    assert "headprune-runs" not in anew[2]


def test_the_latest_run_is_one_that_has_scores_and_a_sweep_s_are_called_like_others(
    headprune, place
):
    prune = ("prune", *SCORED[:3], "--keep", "0.5", "--dry-run", "--scores", "latest")
    code, _out, err = headprune(*prune)
    assert code == 2
    assert "no earlier run" in err
    assert headprune("score", *SCORED[:3], "--method", "gradient")[0] == 0
    sweep = (
        "sweep",
        *SCORED[:3],
        "--methods",
        "gradient,fisher",
        "--points",
        "0.5",
        "--no-latency",
    )
    assert headprune(*sweep)[0] == 0
    for method in ("gradient", "fisher"):
        code, _out, err = headprune(*prune, "--method", method)
        assert code == 0, err
        assert f"scores: headprune-runs/002-sweep/scores.{method}.json" in err
    code, _out, err = headprune(*prune)
    assert code == 2, "by default heads are scored by unique, and the latest run has none"
    assert "has no scores by unique" in err


def test_a_run_that_can_not_be_compared_is_refused_before_the_work(headprune, place):
    check = (
        "check",
        "classifier",
        "--data",
        "data.csv",
        "--baseline",
        "b.json",
        "--update-baseline",
    )
    assert headprune(*check)[0] == 0
    (place / "r.yaml").write_text(
        "model: classifier\ndata: data.csv\nkeep: 0.5\ncheck: {baseline: b.json}\n"
    )
    code, _out, err = headprune("run", "r.yaml")
    assert code == 2
    assert "can't be compared: data" in err
    assert "scoring" not in err
    assert not (place / "headprune-models").exists()


def test_a_run_s_json_holds_results_and_verdict(headprune, place):
    rows = [(text, ("no", "yes")[index % 2]) for index, text in enumerate(sentences(30, seed=5))]
    (place / "test.csv").write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in rows))
    (place / "r.yaml").write_text(
        "model: classifier\ndata: data.csv\neval_data: test.csv\nkeep: 0.5\ncheck: {baseline: b.json, max_parameters: 1}\n"
    )
    assert headprune("check", "--config", "r.yaml", "--update-baseline")[0] == 0
    code, out, _err = headprune("run", "r.yaml", "--json")
    assert code == 1
    document = json.loads(out)
    assert document["verdict"]["passed"] is False
    assert document["results"]["after"]["heads"] == 9


def test_what_headprune_did_not_write_is_never_replaced(headprune, place):
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").write_text("years of work")
    for out in ("thesis", ".", ".."):
        code, _stdout, err = headprune(*PRUNE, "--out", out, "--overwrite")
        assert code == 2, err
    assert (place / "thesis" / "thesis.tex").read_text() == "years of work"
    # What it did write may be replaced, but not by pruning itself.
    assert headprune(*PRUNE, "--out", "out")[0] == 0
    assert headprune(*PRUNE, "--out", "out", "--overwrite")[0] == 0
    code, _stdout, err = headprune(
        "prune", "out", "--data", "data.csv", "--keep", "0.5", "--out", "out", "--overwrite"
    )
    assert code == 2
    assert "lies in out" in err


def test_a_broken_card_of_the_base_model_is_no_reason_to_lose_the_work(headprune, place):
    (place / "classifier" / "README.md").write_text("---\nlicense: [\n---\ntext")
    assert headprune(*PRUNE)[0] == 0


def test_quiet_is_quiet(headprune):
    code, _out, err = headprune("inspect", "decoder", "--quiet")
    assert (code, err) == (0, "")


def test_the_version_is_told(headprune):
    code, out, _err = headprune("--version")
    assert code == 0
    assert out.startswith("headprune 0.")


def wrong_model_type(place):
    config = json.loads((place / "classifier" / "config.json").read_text())
    (place / "classifier" / "config.json").write_text(json.dumps({**config, "model_type": "bret"}))


def truncated(place):
    path = place / "classifier" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def wrong_label(place):
    (place / "data.csv").write_text("text,label\n" + "w1 w2,yess\n" * 9)


def full(place):
    (place / "out").mkdir()
    (place / "out" / "x").write_text("x")


def other_scores(place):
    heads = [f"L{layer}.H{head}" for layer in range(3) for head in range(6)]
    scores = {"format": 1, "method": "x", "heads": heads, "values": [0.0] * 18, "n": 1, "seed": 0}
    (place / "s.json").write_text(
        json.dumps({**scores, "model": {"fingerprint": "zzz", "name": "other"}})
    )


def garbage(place):
    (place / "data.jsonl").write_text('{"text": "a", "label": 1}\nnonsense\n')


def half_config(place):
    path = place / "classifier" / "config.json"
    path.write_text(path.read_text()[:50])


def used_run(place):
    (place / "r").mkdir()
    (place / "r" / "scores.json").write_text("{}")


def two_numbers(place):
    path = place / "classifier" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": "regression"}))


def other_classes(place):
    shutil.copytree(place / "classifier", place / "other")
    path = place / "other" / "config.json"
    names = {"id2label": {"0": "yes", "1": "no"}, "label2id": {"yes": 0, "no": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))


def other_words(place):
    shutil.copytree(place / "classifier", place / "other")
    path = place / "other" / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"seven"'))


PRUNE = ("prune", "classifier", "--data", "data.csv", "--keep", "0.5")
MISTAKES = {
    "missing data file": (
        ("score", "classifier", "--data", "dta.csv"),
        None,
        "there is no file dta.csv",
        "did you mean 'data.csv'",
    ),
    "missing model": (
        ("score", "./nowhere", "--data", "data.csv"),
        None,
        "no directory ./nowhere",
        "check the path",
    ),
    "model not on the hub": (
        ("score", "no/such", "--data", "data.csv"),
        None,
        "could not be had from the hub",
        "HF_HUB_OFFLINE",
    ),
    "a directory without a model": (
        ("score", ".", "--data", "data.csv"),
        None,
        "config.json is missing",
        "config.json",
    ),
    "unknown format": (
        ("score", "classifier", "--data", "classifier/model.safetensors"),
        None,
        "format that isn't known",
        ".csv",
    ),
    "data set not on the hub": (
        ("score", "classifier", "--data", "no/such"),
        None,
        "can't be read",
        "HUB_ID",
    ),
    "malformed data": (
        ("score", "classifier", "--data", "data.jsonl"),
        garbage,
        "the JSON is damaged",
        "line",
    ),
    "wrong text column": (
        ("score", "classifier", "--data", "data.csv", "--text", "txt"),
        None,
        "no column 'txt'",
        "'text'",
    ),
    "run with scores": (
        ("score", "classifier", "--data", "data.csv", "--run-dir", "r"),
        used_run,
        "r holds scores already",
        "--run-dir",
    ),
    "unknown layer": ((*PRUNE, "--protect", "L9"), None, "no layer L9", "L0, L1, L2"),
    "removes nothing": ((*PRUNE[:-1], "0.99"), None, "removes no head", "--keep"),
    "several numbers": (
        ("score", "classifier", "--data", "data.csv"),
        two_numbers,
        "doesn't choose one of several classes",
        "headprune.score(model, batches",
    ),
    "wrong label column": (
        ("score", "classifier", "--data", "data.csv", "--label", "labl"),
        None,
        "no column 'labl'",
        "'label'",
    ),
    "too many text columns": (
        ("score", "classifier", "--data", "data.csv", "--text", "text,label,more"),
        lambda place: (place / "data.csv").write_text("text,label,more\na b,no,c\nb c,yes,d\n"),
        "text columns",
        "--text",
    ),
    "unknown label": (
        ("score", "classifier", "--data", "data.csv"),
        wrong_label,
        "label 'yess'",
        "did you mean 'yes'",
    ),
    "unknown model type": (
        ("score", "classifier", "--data", "data.csv"),
        wrong_model_type,
        "unknown model type 'bret'",
        "bert",
    ),
    "damaged config": (
        ("score", "classifier", "--data", "data.csv"),
        half_config,
        "config.json is damaged",
        "fetch",
    ),
    "truncated weights": (
        ("score", "classifier", "--data", "data.csv"),
        truncated,
        "model.safetensors is damaged",
        "fetch",
    ),
    "keep 0": ((*PRUNE[:-1], "0"), None, "--keep can't be 0", "--keep"),
    "keep 1.5": ((*PRUNE[:-1], "1.5"), None, "--keep can't be 1.5", "--keep"),
    "no keep": (PRUNE[:-2], None, "how many heads to keep", "--keep 0.7"),
    "keep too small": ((*PRUNE[:-1], "0.05"), None, "at least 3 must be kept", "use --keep"),
    "two budgets": ((*PRUNE, "--heads", "9"), None, "2 budgets are set", "leave all but one out"),
    "heads too few": (
        (*PRUNE[:-2], "--heads", "2"),
        None,
        "at least 3 must be kept",
        "use --heads 3",
    ),
    "heads too many": (
        (*PRUNE[:-2], "--heads", "19"),
        None,
        "19 heads can't be kept of 18",
        "1 to 18",
    ),
    "no target": (
        (*PRUNE[:-2], "--target-flops", "much"),
        None,
        "'much' is no target",
        "0.8 or 80%",
    ),
    "a target out of reach": (
        (*PRUNE[:-2], "--target-parameters", "10%"),
        None,
        "the smallest that pruning heads can reach is",
        "use --target-parameters 0.",
    ),
    "a cache target without a cache": (
        (*PRUNE[:-2], "--target-kv-cache", "0.5"),
        None,
        "keeps no keys and values",
        "--target-parameters",
    ),
    "steps to a target": (
        (*PRUNE[:-2], "--target-flops", "0.9", "--steps", "3"),
        None,
        "steps need to know how many heads are kept",
        "--heads 40",
    ),
    "no such multiple": (
        (*PRUNE, "--multiple-of", "7", "--protect", "L0"),
        None,
        "no number that may be kept is a multiple of 7",
        "divisor",
    ),
    "output not empty": ((*PRUNE, "--out", "out"), full, "out is not empty", "--overwrite"),
    "output is a file": ((*PRUNE, "--out", "data.csv"), None, "is a file", "--out"),
    "scores of another model": (
        (*PRUNE, "--scores", "s.json"),
        other_scores,
        "of another model (other)",
        "headprune score",
    ),
    "missing scores": (
        (*PRUNE, "--scores", "nothing.json"),
        None,
        "can't be read",
        "check the path",
    ),
    "scores that are none": (
        (*PRUNE, "--scores", "classifier/config.json"),
        None,
        "not a HeadScores file",
        "headprune score",
    ),
    "a stream without scores": (
        (*PRUNE, "--stream"),
        None,
        "no scores are named",
        "--scores RUN/scores.json",
    ),
    "a stream into another dtype": (
        (*PRUNE[:2], *PRUNE[4:], "--stream", "--scores", "s.json", "--dtype", "bfloat16"),
        None,
        "--dtype asks for bfloat16",
        "leave --dtype out",
    ),
    "a stream with scores of another model": (
        (*PRUNE[:2], *PRUNE[4:], "--stream", "--scores", "s.json"),
        other_scores,
        "of another model (other)",
        "headprune score",
    ),
    "a stream of a model in the way": (
        ("prune", "classifier", "--keep", "0.5", "--stream", "--scores", "s.json", "--out", "out"),
        full,
        "out is not empty",
        "--overwrite",
    ),
    "unknown head": ((*PRUNE, "--protect", "L9.H1"), None, "no head L9.H1", "L0 to L2"),
    "not a head": (
        (*PRUNE, "--protect", "nine"),
        None,
        "'nine' is not the name of a head",
        "L3.H7",
    ),
    "unknown method": (
        (*PRUNE, "--method", "gradiant"),
        None,
        "--method can't be 'gradiant'",
        "--method",
    ),
    "unknown task": (
        ("score", "classifier", "--data", "data.csv", "--task", "clasify"),
        None,
        "no task 'clasify'",
        "classification",
    ),
    "task the model can't do": (
        ("score", "classifier", "--data", "prose.txt", "--task", "causal-lm"),
        None,
        "without that head",
        "leave --task out",
    ),
    "unknown metric": (
        ("eval", "classifier", "--data", "data.csv", "--metric", "acuracy"),
        None,
        "'acuracy' is no built-in",
        "'accuracy'",
    ),
    "unknown device": (
        ("score", "classifier", "--data", "data.csv", "--device", "gpu"),
        None,
        "device 'gpu'",
        "cuda",
    ),
    "no data": (("score", "classifier"), None, "no data is named", "--data FILE"),
    "no baseline": (
        ("check", "classifier", "--data", "data.csv", "--baseline", "b.json"),
        None,
        "no baseline at b.json",
        "--update-baseline",
    ),
    "unknown format of a verdict": (
        ("check", "x.json", "--baseline", "b.json", "--format", "xml"),
        None,
        "--format can't be 'xml': input should be 'text', 'json', 'markdown', 'github' or 'junit'",
        "stdout",
    ),
    "recipe that isn't there": (
        ("run", "nothing.yaml"),
        None,
        "recipe can't be read",
        "check the path",
    ),
    "export to nowhere": (("export", "decoder"), None, "no file is named", "--gguf model.gguf"),
    "export over something else": (
        ("export", "decoder", "--gguf", "data.csv", "--overwrite"),
        None,
        "data.csv is not a GGUF file",
        "another name",
    ),
    "export over a file": (
        ("export", "decoder", "--gguf", "data.csv"),
        None,
        "data.csv is there already",
        "--overwrite",
    ),
    "export into a directory": (
        ("export", "decoder", "--gguf", "decoder"),
        None,
        "decoder is a directory",
        "--gguf decoder/model.gguf",
    ),
    "export of an encoder": (
        ("export", "classifier", "--gguf", "x.gguf"),
        None,
        "it is a bert model",
        "llama and mistral",
    ),
    "export of a tokenizer of words": (
        ("export", "decoder", "--gguf", "x.gguf"),
        None,
        "a WordLevel tokenizer",
        "--no-tokenizer",
    ),
    "healing what was never pruned": (
        ("heal", "classifier", "--data", "data.csv"),
        None,
        "classifier is no pruned model",
        "--teacher MODEL",
    ),
    "healing by a teacher that isn't there": (
        ("heal", "classifier", "--data", "data.csv", "--teacher", "./gone"),
        None,
        "no directory ./gone",
        "check the path",
    ),
    "healing by a teacher of something else": (
        ("heal", "classifier", "--data", "data.csv", "--teacher", "decoder"),
        None,
        "the teacher decoder has no head for classification",
        "--teacher MODEL",
    ),
    "healing by a teacher of other classes": (
        ("heal", "classifier", "--data", "data.csv", "--teacher", "other"),
        other_classes,
        "has other classes",
        "--teacher MODEL",
    ),
    "healing by a teacher of other words": (
        ("heal", "classifier", "--data", "data.csv", "--teacher", "other"),
        other_words,
        "another vocabulary",
        "--teacher MODEL",
    ),
    "a setting that Trainer hasn't": (
        ("heal", "classifier", "--data", "data.csv", "--trainer", "wieght_decay=1"),
        None,
        "no argument 'wieght_decay'",
        "did you mean 'weight_decay'",
    ),
    "healing on a device of its own": (
        ("heal", "classifier", "--data", "data.csv", "--device", "spread"),
        None,
        "can't train on 'spread'",
        "CUDA_VISIBLE_DEVICES",
    ),
    "nothing to resume": (
        ("heal", "classifier", "--data", "data.csv", "--teacher", "classifier", "--resume"),
        None,
        "no checkpoint in headprune-runs",
        "leave out --resume",
    ),
    "a drop that is none": (
        ("prune", "classifier", "--data", "data.csv", "--max-drop", "much"),
        None,
        "--max-drop can't be 'much'",
        "in its own units (0.01), or a share (1%)",
    ),
    "a recipe of nobody": (
        ("prune", "classifier", "--data", "data.csv", "--keep", "0.5", "--recipe", "kwan"),
        None,
        "--recipe can't be 'kwan'",
        "as others do",
    ),
    "rearranging what isn't known": (
        ("prune", "classifier", "--data", "data.csv", "--keep", "0.5", "--rearrange"),
        None,
        "don't say what heads lose together",
        "--method fisher",
    ),
    "the slope of a metric": (
        ("score", "classifier", "--data", "data.csv", "--objective", "metric"),
        None,
        "the metric has no derivative",
        "--method ablation",
    ),
    "a metric's scores, normalized": (
        (
            *("score", "classifier", "--data", "data.csv", "--objective", "metric"),
            *("--method", "ablation", "--normalize", "layer"),
        ),
        None,
        "what heads are worth to the metric isn't normalized",
        "leave out --normalize",
    ),
    "sweep by no method": (
        ("sweep", "classifier", "--data", "data.csv", "--methods", "gradiant,random"),
        None,
        "there is no method 'gradiant'",
        "did you mean 'gradient'",
    ),
    "sweep to more than all heads": (
        ("sweep", "classifier", "--data", "data.csv", "--points", "0.5,1.5"),
        None,
        "--points can't be 1.5",
        "Shares of the heads to keep",
    ),
    "sweep to a point that can't be cut": (
        ("sweep", "classifier", "--data", "data.csv", "--points", "0.05"),
        None,
        "--keep 0.05 keeps 1 of 18 heads",
        "--keep 0.17 or more",
    ),
    "batch size 0": (
        ("score", "classifier", "--data", "data.csv", "--batch-size", "0"),
        None,
        "--batch-size can't be 0",
        "--batch-size",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_exit_2_and_three_parts(headprune, place, name):
    words, prepare, what, hint = MISTAKES[name]
    if prepare:
        prepare(place)
    code, out, err = headprune(*words)
    assert code == 2, err
    assert out == ""
    message = err[err.index("error: ") :].rstrip()
    first, where, advice = message.split("\n")
    assert what in first
    assert where.startswith("  in:   ")
    assert len(where) > 12
    assert advice.startswith("  try:  ")
    assert hint in advice
    assert "Traceback" not in err


def test_a_disk_that_is_full_is_told_before_the_work(headprune, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    code, _out, err = headprune(*PRUNE)
    assert code == 2
    assert "the disk has 0.00 GB left" in err
    assert "evaluating" not in err


def test_a_disk_that_fills_up_while_saving_leaves_nothing(headprune, place, monkeypatch):

    real = os.fsync

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    code, _out, err = headprune(
        *PRUNE, "--scores", made_scores(headprune, place, monkeypatch, real)
    )
    assert code == 2
    assert "No space left on device" in err
    assert "free some space" in err
    assert not list((place / "headprune-models").iterdir())


def made_scores(headprune, place, monkeypatch, real):

    broken = os.fsync
    monkeypatch.setattr(os, "fsync", real)
    assert headprune("score", "classifier", "--data", "data.csv", "--run-dir", "run")[0] == 0
    monkeypatch.setattr(os, "fsync", broken)
    return "run/scores.json"


def test_an_unknown_option_or_command_is_a_usage_error(headprune):
    assert headprune("prune", "--kepe", "1")[0] == 2
    assert headprune("scor")[0] == 2


class PanicException(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("surprise", [ZeroDivisionError, PanicException, SystemExit])
def test_an_unexpected_failure_is_never_the_gate_s_no(headprune, monkeypatch, surprise):
    def broken(*_args, **_kwargs):
        raise surprise("surprise")

    monkeypatch.setattr("headprune.workflows.score.score", broken)
    code, _out, err = headprune("score", "classifier", "--data", "data.csv")
    assert code == 2
    assert "HEADPRUNE_DEBUG=1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EIO, "check the disk"),
        (errno.EACCES, "permissions"),
        (errno.ENOSPC, "free some space"),
        (errno.EMFILE, "ulimit"),
    ],
)
def test_a_failure_of_the_system_is_named_with_its_file(headprune, monkeypatch, number, hint):
    def broken(*_args, **_kwargs):
        raise OSError(number, os.strerror(number), "somewhere/rows.csv")

    monkeypatch.setattr("headprune.workflows.score.score", broken)
    code, _out, err = headprune("score", "classifier", "--data", "data.csv")
    assert code == 2
    assert f"rows.csv: {os.strerror(number)}" in err
    assert "in:   somewhere/rows.csv" in err
    assert hint in err
    assert "unexpected" not in err


def test_a_stopped_run_says_that_it_goes_on(headprune, place, monkeypatch):
    words = ("score", "classifier", "--data", "data.csv", "--batch-size", "8", "--run-dir", "run")
    seconds = iter([False, True])
    one = Journal.put

    def stop(self, name, tensor):
        if next(seconds):
            raise KeyboardInterrupt
        one(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", stop)
        code, _out, err = headprune(*words)
    assert code == 130
    assert "batches done: 1; the same command goes on from there" in err
    code, _out, err = headprune(*words)
    assert code == 0, err
    assert "going on with a run that was stopped; batches done: 1" in err
    assert [path.name for path in (place / "run").iterdir()] == ["scores.json"]


def test_ctrl_c_is_130_and_leaves_nothing(headprune, place, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("headprune.workflows.finish.write_model", stop)
    code, _out, err = headprune(*PRUNE)
    assert code == 130, err
    assert not list((place / "headprune-models").iterdir())


def test_a_proof_that_fails_is_exit_1_and_nothing_is_saved(headprune, place, monkeypatch):
    from headprune.workflows import smaller

    real = smaller.cut

    def wrong(model, anatomy, **options):
        made = real(model, anatomy, **options)
        model.bert.encoder.layer[0].attention.self.query.weight.data.mul_(1.5)
        return made

    monkeypatch.setattr(smaller, "cut", wrong)
    code, _out, err = headprune(*PRUNE)
    assert code == 1
    assert "'masked == pruned' failed" in err
    assert not (place / "headprune-models").exists()


@pytest.mark.parametrize("words", [("inspect", "classifier"), ("inspect", "classifier", "--json")])
def test_a_reader_that_goes_away_is_not_the_gate_s_no(place, words):
    import subprocess

    child = subprocess.Popen(
        [sys.executable, "-m", "headprune", *words, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 2, err
    assert err == ""


def test_a_terminal_without_unicode_is_no_reason_to_crash(place):
    import subprocess

    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = ("score", "classifier", "--method", "random", "--task", "classification")
    done = subprocess.run(
        [sys.executable, "-m", "headprune", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "random scores" in done.stdout


def test_keep_goes_one_way_from_the_command_line_to_the_planner(headprune):
    """One section says it, and few functions pass it on."""
    sections = [part for _name, part in Settings() if "keep" in type(part).model_fields]
    assert [type(part) for part in sections] == [Constraints]
    calls = []

    def note(frame, event, _argument):
        if (
            event == "call"
            and frame.f_code.co_name == "make_plan"
            and "constraints" in frame.f_locals
        ):
            way, constraints = [], frame.f_locals["constraints"]
            while frame is not None:
                if frame.f_globals["__name__"].startswith("headprune."):
                    way.append(frame.f_code.co_name)
                frame = frame.f_back
            calls.append((constraints, way))

    words = ("prune", "classifier", "--method", "magnitude", "--keep", "0.5", "--dry-run")
    sys.setprofile(note)
    try:
        code, _out, err = headprune(*words, "--data", "data.csv")
    finally:
        sys.setprofile(None)
    assert code == 0, err
    ((constraints, way),) = calls
    assert isinstance(constraints, Constraints)
    assert constraints == Constraints(keep=0.5)
    assert len(way[: way.index("prune") + 1]) <= 12, way
