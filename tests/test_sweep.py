"""Curves of the metric against the share of heads kept: what they hold, and what they look like."""

import copy
import dataclasses
import itertools
import json
import math
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, inspected, sentences
from hypothesis import given
from hypothesis import strategies as st
from test_processes import DyingJournal, StoppedError

import headprune as hp
from headprune.artefact import read_artefact
from headprune.config import Settings
from headprune.errors import ConfigError, ModelError, PlanError, UnsupportedError
from headprune.evaluation import metric_with_interval, predict, predict_masked
from headprune.models.find import ModelSource
from headprune.passes import SILENT, RunContext
from headprune.planning.constraints import knee, last_within
from headprune.plans import HeadScores
from headprune.replay.losses import losses
from headprune.report.sweeps import sweep_picture
from headprune.report.terminal import ConsoleProgress
from headprune.results import Sweep
from headprune.runtime.journal import Journal
from headprune.tasks.catalogue import TASKS
from headprune.tasks.rows import Example, noted_rows
from headprune.tasks.task import get_task
from headprune.workflows.curves import Pruning, measure_curves
from headprune.workflows.prune import prune as prune_model
from headprune.workflows.rows import separate_rows
from headprune.workflows.session import Session, open_session
from headprune.workflows.sweep import _can_prune, compared, lawful_points
from headprune.workflows.sweep import sweep as sweep_model

KEEPS = (1.0, 0.7, 0.5, 0.3)
QUIET = ConsoleProgress(quiet=True)


def subject_of(name, tokenizer, **settings):
    """Return a tiny model with its task, and rows."""
    task = get_task("causal-lm" if name == "llama" else "classification")
    asked = Settings.of(model=name, max_length=16, batch_size=8, **settings)
    if task.name == "causal-lm":
        ids = tokenizer("\n".join(sentences(60)), add_special_tokens=False)["input_ids"]
        examples = [Example(tokens=tuple(ids[at : at + 16])) for at in range(0, 320, 16)]
    else:
        examples = [Example((text,), place % 2) for place, text in enumerate(sentences(20))]
    model = build(name)
    source = ModelSource(name, Path(name), None, model.config)
    subject = Session(asked, source, model, tokenizer, task, QUIET)
    return subject, subject.batches(examples)


def drawn_scores(anatomy, seed, method="drawn"):
    values = torch.rand(len(anatomy.heads), generator=torch.Generator().manual_seed(seed)).tolist()
    return HeadScores(method=method, heads=anatomy.heads, values=tuple(values), n=0, seed=seed)


def curves_of(subject, batches, *, context=SILENT, keeps=KEEPS):
    scores = {
        name: drawn_scores(subject.anatomy, seed, name) for seed, name in enumerate(("one", "two"))
    }
    constraints = subject.settings.plan.model_copy(update={"max_drop": None})
    return measure_curves(
        subject, scores, keeps=keeps, constraints=constraints, batches=batches, context=context
    )


@pytest.fixture(scope="module", params=["bert", "llama"])
def measured(request, tokenizer):
    """Return a subject, its anatomy and batches, and its curves."""
    subject, batches = subject_of(request.param, tokenizer, max_drop=0.1)
    anatomy = inspected(subject.model)
    return subject, anatomy, batches, curves_of(subject, batches)


def test_the_whole_model_is_what_plain_evaluation_finds(measured):
    subject, _anatomy, batches, curves = measured
    task = subject.task
    found = predict(subject.model, task, batches=batches)
    expected = metric_with_interval(found, subject.metric, seed=0)
    assert expected.higher_is_better is (task.metric == "accuracy")
    for curve in curves:
        whole = curve.points[0]
        assert (whole.keep, whole.share, whole.removed) == (1.0, 1.0, ())
        assert whole.value == pytest.approx(expected.value, rel=1e-6)
        assert whole.interval == pytest.approx(expected.interval, rel=1e-6)
        assert (whole.difference, whole.difference_interval) == (0.0, (0.0, 0.0))


def test_every_point_is_masking_and_evaluating_by_hand(measured):
    subject, anatomy, batches, curves = measured
    model, task = subject.model, subject.task
    plain = predict(model, task, batches=batches)
    assert len({point.removed for curve in curves for point in curve.points}) == 7
    for point in itertools.chain(*(curve.points for curve in curves)):
        with hp.masked(model, point.removed, anatomy=anatomy):
            found = predict(model, task, batches=batches)
            lost = torch.cat([task.loss(model(**b.inputs), b).detach() for b in batches]).double()
        metric = subject.metric
        expected = metric_with_interval(found, metric, seed=0)
        difference = metric_with_interval(found, metric, seed=0, other=plain)
        assert point.value == pytest.approx(expected.value, rel=1e-5)
        assert point.interval == pytest.approx(expected.interval, rel=1e-5)
        assert point.difference == pytest.approx(difference.value, rel=1e-4, abs=1e-6)
        assert point.difference_interval == pytest.approx(difference.interval, rel=1e-4, abs=1e-6)
        assert point.loss == pytest.approx(lost.mean().item(), rel=1e-5)
        error = (lost.std() / len(lost) ** 0.5).item()
        assert point.loss_standard_error == pytest.approx(error, rel=1e-4)


def test_a_point_is_the_model_that_prune_would_make(measured):
    subject, anatomy, batches, curves = measured
    point = curves[0].points[-1]
    smaller = hp.prune(copy.deepcopy(subject.model), point.removed)
    found = predict(smaller, subject.task, batches=batches)
    expected = metric_with_interval(found, subject.metric, seed=0)
    assert point.value == pytest.approx(expected.value, rel=1e-5)
    assert point.heads == len(inspected(smaller).heads) == len(anatomy.heads) - len(point.removed)
    assert point.share == pytest.approx(point.heads / len(anatomy.heads))


def test_fewer_heads_are_some_of_the_same(measured):
    *_rest, curves = measured
    for curve in curves:
        cuts = [set(point.removed) for point in curve.points]
        assert all(more < fewer for more, fewer in itertools.pairwise(cuts))


def test_shares_are_of_the_heads_that_may_go(tokenizer):
    subject, batches = subject_of("bert", tokenizer, sites=("L0", "L2"))
    curves = curves_of(subject, batches, keeps=(1.0, 0.5))
    for curve in curves:
        assert [point.heads for point in curve.points] == [18, 12]
        assert [point.share for point in curve.points] == [1.0, 0.5]


def test_losses_are_those_of_the_hot_path(measured):
    subject, anatomy, batches, curves = measured
    points = curves[1].points
    masks = torch.tensor([[float(h not in p.removed) for h in anatomy.heads] for p in points])
    given_both = {"batches": batches, "masks": masks}
    found = predict_masked(subject.model, anatomy, subject.task, **given_both)
    expected = losses(subject.model, anatomy, loss=subject.task.loss, **given_both)
    lost = torch.tensor(np.stack([one.losses for one in found]))
    assert torch.allclose(lost.float(), expected, rtol=1e-4, atol=1e-5)
    assert [p.loss for p in points] == pytest.approx(lost.mean(1).tolist(), rel=1e-6)


def test_a_predicted_loss_over_its_references_is_the_loss(tokenizer):
    """What lets one pass measure both."""
    for task in map(get_task, TASKS):
        if task.predicted_loss is not None:
            subject, batches = subject_of("llama", tokenizer)
            outputs = subject.model(**batches[0].inputs)
            predicted, references = task.predict(outputs, batches[0])
            loss = task.loss(outputs, batches[0])
            assert torch.allclose(predicted / references, loss, rtol=1e-6)


def test_the_order_of_the_rows_does_not_matter(tokenizer):
    subject, batches = subject_of("bert", tokenizer)
    turned = tuple(reversed(batches))
    assert curves_of(subject, turned) == curves_of(subject, batches)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("done", [0, 2])
def test_a_sweep_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    tmp_path, tokenizer, name, done
):
    subject, batches = subject_of(name, tokenizer)
    whole = curves_of(subject, batches)
    DyingJournal.left = done
    with pytest.raises(StoppedError):
        curves_of(subject, batches, context=RunContext(journal=DyingJournal(tmp_path)))
    journal = Journal(tmp_path)
    assert journal.count() == done
    resumed = curves_of(subject, batches, context=RunContext(journal=journal))
    assert [c.model_dump_json() for c in resumed] == [c.model_dump_json() for c in whole]
    assert journal.count() == len(batches) * (1 if name == "llama" else 7)
    # Other cuts are other results.
    other = curves_of(subject, batches, context=RunContext(journal=journal), keeps=(1.0, 0.6))
    assert other == curves_of(subject, batches, keeps=(1.0, 0.6))


def test_predictions_that_are_no_numbers_are_refused(tokenizer):
    subject, batches = subject_of("llama", tokenizer)
    subject.model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = math.nan
    masks = torch.ones(1, 24)
    with pytest.raises(ModelError, match="not finite"):
        predict_masked(
            subject.model, inspected(subject.model), subject.task, batches=batches, masks=masks
        )


@given(
    bend=st.integers(10, 90),
    scale=st.floats(0.01, 100),
    offset=st.floats(-10, 10),
    shares=st.lists(st.integers(1, 999), max_size=12),
)
def test_the_knee_of_a_roof_is_its_ridge(bend, scale, offset, shares):
    """A curve that is flat down to ``bend`` and falls from there: the ridge is farthest from the chord, whatever the units."""
    bend /= 100
    shares = sorted({1.0, 0.0, bend, *(share / 1000 for share in shares)}, reverse=True)
    values = [offset + scale * min(1.0, share / bend) for share in shares]
    assert shares[knee(shares, values)] == bend


@given(values=st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=9))
def test_the_knee_is_the_point_farthest_from_the_chord(values):
    """In fractions, where equal distances are equal: of those the knee has the fewest heads."""
    span, fall = len(values) - 1, values[0] - values[-1]
    found = knee([1 - place / len(values) for place in range(len(values))], values)
    if fall <= 0:
        assert found is None
        return
    above = [
        Fraction(value - values[-1]) / Fraction(fall) - Fraction(span - place, span)
        for place, value in enumerate(values)
    ]
    ties = [place for place, height in enumerate(above) if height == max(above)]
    assert found == (ties[-1] if max(above) > 0 else None)


def test_curves_without_a_knee_have_none():
    shares = [1.0, 0.7, 0.4, 0.1]
    assert knee(shares, [4.0, 3.0, 2.0, 1.0]) is None, "straight"
    assert knee(shares, [1.0, 0.3, 0.1, 0.0]) is None, "falls at once"
    assert knee(shares, [1.0, 1.1, 1.2, 1.0]) is None, "no worse at the end"
    assert knee([1.0], [1.0]) is None
    assert knee([1.0, 0.75, 0.5, 0.25], [3.0, 3.0, 2.0, 0.0]) == 2, "of equals the fewest heads"


@given(worst=st.lists(st.floats(-1, 1), max_size=8), limit=st.floats(0, 1))
def test_the_last_within_follows_points_that_are_all_within(worst, limit):
    found = last_within(worst, limit)
    count = 0 if found is None else found + 1
    assert all(drop <= limit for drop in worst[:count])
    assert count == len(worst) or worst[count] > limit


def test_the_limit_is_kept_by_the_worse_end_of_the_interval(measured):
    subject, _anatomy, _batches, curves = measured
    for curve in curves:
        held = True
        for point in curve.points:
            low, high = point.difference_interval
            held = held and (-low if subject.metric.higher_is_better else high) <= 0.1
            assert held == (point.keep >= curve.within_drop)


def test_points_that_can_not_be_cut_are_left_out_or_refused(capsys, tokenizer):
    anatomy = inspected(build("bert"))

    def points_of(**settings):
        asked = Settings.of(**settings)
        return lawful_points(
            anatomy, asked.plan, points=asked.run.points, progress=ConsoleProgress()
        )

    assert points_of(min_heads=2) == (
        1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4,
    )  # fmt: skip
    told = capsys.readouterr().err
    assert "left out: `keep=0.3` keeps 5 of 18 heads, and at least 6 must be kept" in told
    with pytest.raises(PlanError, match=r"`keep=0.2` keeps 4 of 18"):
        points_of(min_heads=2, points=(0.5, 0.2))
    with pytest.raises(PlanError, match="removes no head"):
        points_of(points=(0.99,))
    assert points_of(points=(0.3, 0.8, 0.3)) == (1.0, 0.8, 0.3)
    with pytest.raises(PlanError, match="no attention 'cross'"):
        points_of(sites=("cross",))


def test_methods_are_those_named_or_a_method_and_its_controls():
    def names(**settings):
        return tuple(score.method for score in compared(Settings.of(**settings).score))

    assert names() == ("gradient", "magnitude", "random")
    assert names(method="fisher") == ("fisher", "magnitude", "random")
    assert names(methods="prune,fisher") == ("fisher",)
    assert names(methods="prune") == ()
    assert names(methods="random, ablation,random") == ("random", "ablation")
    with pytest.raises(ConfigError, match="no method 'gradiant'"):
        names(methods=("gradiant",))


@pytest.fixture
def place(run_here, tokenizer, monkeypatch):
    """Return an empty directory with a model and two files of rows, some of them the same."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(run_here / ".cache"))
    build("bert").save_pretrained("model")
    tokenizer.save_pretrained("model")
    lines = [f"{text},{index % 2}\n" for index, text in enumerate(sentences(40))]
    (run_here / "train.csv").write_text("text,label\n" + "".join(lines[:28]))
    (run_here / "test.csv").write_text("text,label\n" + "".join(lines[20:]))
    return run_here


@pytest.fixture
def sweep(place, command_line):
    """Return a function that runs the command: (exit code, stdout, stderr)."""
    data = ("--data", "train.csv", "--eval-data", "test.csv", "--batch-size", "5")
    return partial(command_line, "sweep", "model", *data)


def test_the_command_writes_curves_pictures_and_scores(sweep, place):
    words = (
        "--methods",
        "gradient,random",
        "--points",
        "0.8,0.5",
        "--max-drop",
        "1",
        "--no-latency",
    )
    code, out, err = sweep(*words)
    assert code == 0, err
    assert "drop surely within 1 down to keep 0.5" in out
    folder = place / "headprune-runs" / "001-sweep"
    assert "written: headprune-runs/001-sweep" in err
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "scores.gradient.json", "scores.random.json", "sweep.json", "sweep.png", "sweep.svg",
    ]  # fmt: skip
    assert not (place / "headprune-runs" / "partial").exists()
    found = read_artefact(Sweep, folder / "sweep.json")
    assert found.to_json() == (folder / "sweep.json").read_text()
    assert [curve.method for curve in found.curves] == ["gradient", "random"]
    assert [(point.keep, point.heads) for point in found.curves[1].points] == [
        (1.0, 18), (0.8, 14), (0.5, 9),
    ]  # fmt: skip
    # The same again, in the next directory and in JSON.
    code, out, err = sweep(*words, "--json")
    assert code == 0, err
    assert out == found.to_json()
    assert (place / "headprune-runs" / "002-sweep" / "sweep.svg").read_bytes() == (
        folder / "sweep.svg"
    ).read_bytes()
    # A point is a cut that prune makes of the scores beside it.
    scores = read_artefact(HeadScores, folder / "scores.gradient.json")
    plan = hp.plan(scores, hp.Constraints(keep=0.5), anatomy=inspected(build("bert")))
    assert plan.remove == found.curves[0].at(0.5).removed


def test_rows_that_chose_are_not_rows_that_report(sweep, place):
    words = ("--methods", "gradient,magnitude", "--points", "0.5", "--no-latency")
    code, out, err = sweep(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    asked = Settings.of(data="train.csv", eval_data="test.csv", model="model")
    subject = open_session(asked, progress=QUIET)
    parts = separate_rows(subject)
    choosing, reporting = parts.calibrate, parts.report
    assert found["calibration"] == choosing.note
    assert found["data"] == reporting.note
    assert (found["calibration"]["n"], found["n"]) == (20, 20)
    # The rows that are named are those that were run.
    anatomy = inspected(subject.model)
    run = {
        name: predict_masked(
            subject.model,
            anatomy,
            subject.task,
            batches=subject.batches(rows.examples),
            masks=torch.ones(1, len(anatomy.heads)),
        )[0].losses.mean()
        for name, rows in (("choosing", choosing), ("reporting", reporting))
    }
    for curve in found["curves"]:
        assert curve["points"][0]["loss"] == pytest.approx(run["reporting"], rel=1e-5)
    assert run["reporting"] != pytest.approx(run["choosing"], rel=1e-3)
    scores = json.loads((place / "headprune-runs/001-sweep/scores.gradient.json").read_text())
    assert set(scores["rows"]) == set(noted_rows(choosing.examples))
    assert not set(scores["rows"]) & set(noted_rows(reporting.examples))
    assert [curve["scored_on"] for curve in found["curves"]] == [20, 0]


def test_nothing_is_overwritten_unasked(sweep, place):
    words = ("--methods", "random", "--points", "0.5", "--no-latency", "--out", "out")
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    code, _out, err = sweep(*words, "--overwrite")
    assert code == 2
    assert "headprune did not write" in err
    shutil.rmtree(place / "out")
    assert sweep(*words)[0] == 0
    code, _out, err = sweep(*words)
    assert code == 2
    assert "not empty" in err
    assert "evaluating" not in err
    assert sweep(*words, "--overwrite")[0] == 0


@pytest.mark.parametrize("done", [2, 5])
def test_the_same_command_goes_on_where_it_was_stopped(sweep, place, monkeypatch, done):
    """Four batches score, and four are evaluated under each of two masks."""
    words = ("--methods", "gradient", "--points", "0.5", "--no-latency", "--json")
    assert sweep(*words, "--out", "whole")[0] == 0
    one, left = Journal.put, iter([False] * done + [True])

    def stop(self, name, tensor):
        if next(left):
            raise KeyboardInterrupt
        one(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", stop)
        code, _out, err = sweep(*words, "--out", "out")
    assert code == 130
    assert "the same command goes on from there" in err
    assert not (place / "out").exists()
    code, _out, err = sweep(*words, "--out", "out")
    assert code == 0, err
    assert (
        "batches done: 2" in err
        if done == 2
        else "a sweep that was stopped; batches done: 1" in err
    )
    for path in (place / "whole").iterdir():
        assert (place / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (place / "headprune-runs" / "partial").exists()


def test_what_leads_to_one_cut_is_left_aside_aloud(sweep, place):
    (place / "headprune.yaml").write_text(
        "steps: 3\nreconstruct: refit\nheads: 4\nmethods: [magnitude, random]\n"
    )
    code, out, err = sweep("--points", "0.5", "--multiple-of", "2", "--no-latency", "--json")
    assert code == 0, err
    assert "its own points and scores: --heads" in err
    assert "masked at every point: --steps, --reconstruct" in err
    found = json.loads(out)
    assert found["constraints"]["multiple_of"] == 2
    assert [curve["method"] for curve in found["curves"]] == ["magnitude", "random"]
    for curve in found["curves"]:
        assert [point["heads"] for point in curve["points"]] == [18, 10], "not 4, and not 9"


def test_pictures_are_the_same_bytes_and_leave_settings_alone(measured):
    import matplotlib as mpl

    subject, anatomy, _batches, curves = measured
    metric = subject.task.metric
    found = Sweep(
        metric=metric, higher_is_better=subject.metric.higher_is_better, n=20, num_heads=len(anatomy.heads), max_drop=0.1,
        curves=curves, constraints={"sites": []}, objective="loss", normalize="none", limit=None, seed=0, calibration={},
        data={"name": "rows"}, model={"name": "tiny"}, versions={},
    )  # fmt: skip
    assert Sweep.model_validate_json(found.to_json()) == found
    svg = sweep_picture(found, kind="svg")
    with mpl.rc_context({"font.size": 33, "axes.facecolor": "red"}):
        assert sweep_picture(found, kind="svg") == svg
        assert mpl.rcParams["font.size"] == 33
    assert b"<dc:date>" not in svg
    png = sweep_picture(found, kind="png")
    assert sweep_picture(found, kind="png") == png
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 1000


PRUNED = {
    "bert": {},
    "llama": {"steps": 3, "reconstruct": "refit", "protect": ("L0",)},
    "gpt2": {"steps": 1, "method": "fisher"},
}


def subject_on_disk(name, tokenizer, **settings):
    """Write a model and rows; return the settings that name them."""
    build(name).save_pretrained(name)
    tokenizer.save_pretrained(name)
    texts = sentences(90, seed=1)
    Path("rows.csv").write_text(
        "text,label\n" + "".join(f"{text},{row % 2}\n" for row, text in enumerate(texts))
    )
    Path("prose.txt").write_text("\n".join(sentences(300, seed=1)))
    data = "rows.csv" if name == "bert" else "prose.txt"
    fixed = {"max_length": 16, "num_samples": 40, "batch_size": 8, "latency": False}
    return Settings.of(model=name, data=data, **fixed, **settings)


@pytest.mark.parametrize("name", PRUNED)
def test_a_point_of_prune_is_what_prune_makes(name, run_here, tokenizer):
    """The same heads, the same parameters, and the same metric and loss of the model that it writes."""
    settings = subject_on_disk(name, tokenizer, **PRUNED[name])
    chosen = settings.replaced(methods=("prune",), points=(0.8, 0.6))
    (curve,) = sweep_model(chosen, progress=QUIET)[0].curves
    assert (curve.name, curve.steps) == ("prune", settings.score.steps or 2)
    reconstructed = 0
    for point in curve.points[1:]:
        asked = settings.replaced(keep=point.keep, out=f"out-{point.keep}")
        results = prune_model(asked, progress=QUIET, show=lambda *_: None)
        reconstructed += results.reconstruct.kept is not None
        assert [str(head) for head in point.removed] == list(results.removed)
        assert (point.heads, point.parameters) == (results.heads[1], results.parameters[1])
        assert point.value == pytest.approx(results.after.value, rel=1e-5)
        assert point.interval == pytest.approx(results.after.interval, rel=1e-5)
        assert point.difference == pytest.approx(results.difference, rel=1e-4, abs=1e-6)
        session = open_session(settings, progress=QUIET)
        batches = session.batches(separate_rows(session).report.examples)
        found = predict(hp.load(f"out-{point.keep}"), session.task, batches=batches)
        assert point.loss == pytest.approx(found.losses.mean(), rel=1e-5)
    assert reconstructed, "what is compared is reconstructed somewhere"


@pytest.mark.parametrize("allow_bias", [False, True])
def test_a_sweep_leaves_every_weight_as_it_was(allow_bias, run_here, tokenizer):
    settings = subject_on_disk("llama", tokenizer, reconstruct="refit", allow_bias=allow_bias)
    session = open_session(settings, progress=QUIET)
    model = session.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, parts = model.config.to_dict(), separate_rows(session)
    pruning = Pruning.of(session, parts, session.settings.plan)
    settings = {"keeps": (1.0, 0.75), "constraints": session.settings.plan, "context": SILENT}
    batches = session.batches(parts.report.examples)
    (curve,) = measure_curves(session, {}, batches=batches, pruning=pruning, **settings)
    masks = session.anatomy.mask(curve.points[1].removed)[None]
    (masked,) = predict_masked(model, session.anatomy, session.task, batches=batches, masks=masks)
    assert curve.points[1].loss != pytest.approx(masked.losses.mean(), rel=1e-4), "reconstructed"
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == list(weights)
    for name, tensor in model.state_dict().items():
        assert tensor.numpy().tobytes() == weights[name].numpy().tobytes(), name


def test_a_point_of_prune_that_is_done_is_not_done_again(sweep, place, monkeypatch):
    words = ("--methods", "prune", "--points", "0.8,0.5", "--no-latency")
    assert sweep(*words, "--out", "whole")[0] == 0
    one, done = Journal.put, []

    def stop(self, name, tensor):
        done.extend([name] if name.startswith("prune-") else [])
        if len(done) == 2:
            raise KeyboardInterrupt
        one(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", stop)
        code, _out, err = sweep(*words, "--out", "out")
    assert code == 130
    assert "prune at keep 0.5" in err
    code, _out, err = sweep(*words, "--out", "out")
    assert code == 0, err
    assert "prune at keep 0.8" not in err
    assert "prune at keep 0.5" in err
    for path in (place / "whole").iterdir():
        assert (place / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (place / "headprune-runs" / "partial").exists()


def test_points_tell_parameters_and_an_estimate_of_latency(sweep, place):
    code, out, err = sweep("--methods", "prune,random", "--points", "0.5", "--json")
    assert code == 0, err
    found = Sweep.model_validate_json(out)
    assert "32 rows of " in found.latency["rows"]
    assert bool(found.latency["busy"]) is ("is a rough estimate" in err)
    for curve in found.curves:
        whole, half = curve.points
        assert half.latency_ms <= whole.latency_ms == found.whole.latency_ms
        smaller = hp.prune(build("bert"), half.removed)
        assert half.parameters == sum(one.numel() for one in smaller.parameters())
        assert (
            half.parameters
            < whole.parameters
            == sum(one.numel() for one in build("bert").parameters())
        )
    code, out, err = sweep("--methods", "random", "--points", "0.5", "--no-latency", "--json")
    assert code == 0, err
    found = Sweep.model_validate_json(out)
    assert (found.latency, found.whole.latency_ms) == ({}, None)


def test_without_all_weights_here_nothing_is_pruned(run_here, tokenizer):
    accelerate = pytest.importorskip("accelerate")
    settings = subject_on_disk("bert", tokenizer)
    session = open_session(settings, progress=QUIET)
    assert _can_prune(session)
    accelerate.cpu_offload(session.model, execution_device=torch.device("cpu"))
    assert not _can_prune(session)
    named = dataclasses.replace(session, settings=settings.replaced(methods=("prune",)))
    with pytest.raises(UnsupportedError, match="can't be cut"):
        _can_prune(named)
