"""The gate fails what regressed, never what improved, and refuses to compare what can't be compared."""

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headprune.artefact import EvalResult
from headprune.config import GateSpec
from headprune.errors import CheckpointError, ConfigError
from headprune.gate import (
    Baseline,
    compare,
    read_baseline,
    refuse_unusable_baseline,
    write_baseline,
)
from headprune.report.ci import FORMATS


def result_of(value=0.8, *, half=0.02, higher=True, **changes):
    fields = {
        "metric": "spearman",
        "value": value,
        "interval": (value - half, value + half),
        "n": 1379,
        "higher_is_better": higher,
        "parameters": 1000,
        "heads": 72,
        "latency_ms": {"batch_1": 10.0, "batch_32": 100.0},
        "seed": 0,
        "data": {"name": "d", "split": "test", "fingerprint": "abc"},
        "model": {"name": "m", "revision": "r1"},
    }
    return EvalResult(**{**fields, **changes})


BASE = Baseline.of(result_of())


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0, 0.5), st.booleans())
def test_it_fails_exactly_beyond_the_allowed_drop(old, new, allowed, higher):
    baseline = Baseline.of(result_of(old, higher=higher))
    verdict = compare(result_of(new, higher=higher), baseline, limits=GateSpec(max_drop=allowed))
    drop = (baseline.value - round(new, 6)) * (1 if higher else -1)
    assert verdict.passed == (drop <= allowed)
    assert verdict.drop == drop


@given(st.floats(0.01, 0.99), st.floats(0, 0.5), st.booleans())
def test_an_improvement_never_fails(old, gain, higher):
    baseline = Baseline.of(result_of(old, higher=higher))
    new = result_of(baseline.value + (gain if higher else -gain / 100), higher=higher)
    for limits in (
        GateSpec(),
        GateSpec(max_drop=0),
        GateSpec(min_recovery=1.0) if new.value > 0 else GateSpec(),
    ):
        assert compare(new, baseline, limits=limits).passed


def test_without_limits_a_drop_beyond_noise_fails():
    assert compare(result_of(0.78), BASE, limits=GateSpec()).passed
    verdict = compare(result_of(0.76), BASE, limits=GateSpec())
    assert not verdict.passed
    assert not verdict.within_noise


def test_noise_is_part_of_the_verdict():
    verdict = compare(result_of(0.789), BASE, limits=GateSpec(max_drop=0.01))
    assert not verdict.passed
    assert verdict.within_noise
    assert "within noise" in verdict.findings[0].message
    clear = compare(result_of(0.5), BASE, limits=GateSpec(max_drop=0.01))
    assert "within noise" not in clear.findings[0].message


@pytest.mark.parametrize(
    ("limits", "changes", "passed"),
    [
        ({"min_recovery": 0.95}, {"value": 0.77}, True),
        ({"min_recovery": 0.97}, {"value": 0.77}, False),
        ({"min_recovery": 0.5}, {"value": -0.1}, False),
        ({"max_parameters": 1000}, {}, True),
        ({"max_parameters": 999}, {}, False),
        ({"max_latency_increase": 0.1}, {"latency_ms": {"batch_1": 10.9, "batch_32": 90.0}}, True),
        ({"max_latency_increase": 0.1}, {"latency_ms": {"batch_1": 9.0, "batch_32": 111.0}}, False),
    ],
)
def test_each_limit_holds_and_breaks(limits, changes, passed):
    verdict = compare(result_of(**changes), BASE, limits=GateSpec(**limits))
    named = [finding for finding in verdict.findings if finding.name.replace("-", "_") in limits]
    assert [finding.passed for finding in named] == [passed]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"metric": "pearson"}, "metric"),
        ({"limit": 100}, "limit"),
        ({"data": {"fingerprint": "other"}}, "data"),
        ({"higher": False}, "direction"),
        ({"model": {"name": "m", "revision": "r2"}}, "model revision"),
        (
            {"model": {"name": "pruned", "source": {"name": "m", "revision": "r2"}}},
            "model revision",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused(changes, name):
    with pytest.raises(ConfigError, match=name) as caught:
        compare(result_of(**changes), BASE, limits=GateSpec(max_drop=1))
    assert caught.value.exit_code == 2
    assert "`update_baseline`" in caught.value.hint


def test_a_pruned_model_is_compared_with_what_it_was_pruned_from():
    pruned = result_of(
        model={"name": "out", "revision": None, "source": {"name": "m", "revision": "r1"}}
    )
    assert compare(pruned, BASE, limits=GateSpec(max_drop=0)).passed


def test_a_baseline_diffs_well(tmp_path):
    path = tmp_path / "baseline.json"
    write_baseline(path, result_of(0.82031234567))
    first = path.read_text()
    write_baseline(path, result_of(0.82031234999))
    assert path.read_text() == first, "differences that don't matter don't show"
    assert first.endswith("}\n")
    assert list(json.loads(first)) == sorted(json.loads(first))
    assert read_baseline(path).value == 0.820312
    with pytest.raises(ConfigError, match="no baseline"):
        read_baseline(tmp_path / "other.json")


FAILED = compare(result_of(0.5), BASE, limits=GateSpec(max_drop=0.01, max_parameters=2000))


def test_json_is_one_document():
    document = json.loads(FORMATS["json"](FAILED))
    assert document["passed"] is False
    assert document["drop"] == pytest.approx(0.3)


def test_junit_counts_and_names_the_failures():
    suite = ElementTree.fromstring(FORMATS["junit"](FAILED).encode())
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["max-drop"]


def test_github_annotations_are_escaped_and_the_summary_is_written(tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    lines = FORMATS["github"](FAILED).splitlines()
    assert lines[0].startswith("::error title=headprune check%3A max-drop failed::")
    assert lines[1].startswith("::notice ")
    assert "| max-drop |" in summary.read_text(encoding="utf-8")


def test_markdown_and_text_say_the_verdict():
    assert FORMATS["markdown"](FAILED).startswith("### headprune check: failed")
    text = FORMATS["text"](FAILED)
    assert "FAIL  max-drop: spearman 0.8000 -> 0.5000 [0.4800, 0.5200], drop 0.3000" in text
    assert "ok    max-parameters: 1,000 parameters, allowed 2,000" in text


@given(st.floats(0.001, 0.999), st.floats(1e-4, 1e4))
def test_a_model_never_fails_against_its_own_baseline(value, latency):
    result = result_of(value, latency_ms={"batch_1": latency})
    limits = GateSpec(max_drop=0, min_recovery=1.0, max_latency_increase=0.01)
    assert compare(result, Baseline.of(result), limits=limits).passed


@pytest.mark.parametrize("content", ["text,label\nmine,1\n", "[1]", '{"mine": 1}'])
def test_a_baseline_takes_the_place_of_a_baseline_alone(tmp_path, content):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="is no baseline, and is not replaced"):
        refuse_unusable_baseline(path)
    assert path.read_text() == content
    path.unlink()
    for value in (0.5, 0.6):  # there is none, then there is one
        refuse_unusable_baseline(path)
        write_baseline(path, result_of(value))
