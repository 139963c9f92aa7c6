"""Latency is a number with an interval, costs seconds, says when the machine is too busy, and is judged by its interval."""

import json
import time
from xml.etree import ElementTree

import pytest
from families import build, token_inputs
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from test_gate import result_of

from headprune import footprint
from headprune.artefact import Latency
from headprune.batch import as_batches, forward
from headprune.config import GateSpec
from headprune.footprint import latency_ms, of_length, sizes
from headprune.gate import Baseline, compare

MS = st.floats(0.01, 1e4)


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=30))
def test_the_interval_holds_the_median_and_95_percent_of_what_medians_may_be(seconds):
    (batch,) = as_batches([token_inputs(rows=2)])
    found = footprint._latency(seconds, batch, busy="")
    low, high = found.interval
    taken = sorted(round(value * 1000, 4) for value in seconds)
    assert low <= found.ms <= high
    assert found.repeats == len(seconds)
    if len(taken) < 6:
        assert (low, high) == (taken[0], taken[-1])
    else:
        inside = [k for k in range(len(taken) + 1) if taken[k - 1 if k else 0] >= low]
        assert binom.cdf(min(inside) - 1, len(taken), 0.5) <= 0.025


@given(MS)
def test_a_number_alone_of_an_older_file_is_read(ms):
    found = result_of(latency_ms={"batch_1": ms}).latency_ms["batch_1"]
    assert (found.ms, found.interval, found.repeats) == (ms, (ms, ms), 0)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_rows_have_the_length_that_was_asked_for(family, length):
    model = build(family)
    batches = as_batches([token_inputs(rows=4)])
    for size in sizes(batches, lengths=[length], rows=[1, 3]):
        assert size.batch.inputs["input_ids"].shape == (1, length)
        assert size.is_asked
    forward(model, of_length(batches[0], length).inputs)


def slow(model, seconds):
    model.register_forward_hook(lambda *_args: time.sleep(seconds))
    return model


def test_what_would_take_long_is_left_out_and_said_unless_asked_for(bert, monkeypatch):
    monkeypatch.setattr(footprint, "_MOST_SECONDS", 1.0)
    batches, said = as_batches([token_inputs(rows=4)]), []
    (found,) = latency_ms(
        [slow(bert, 0.02)], sizes=sizes(batches), seconds=0.01, notify=said.append
    )
    assert set(found) == {"batch_1"}
    assert "`latency_batch=32` asks for it" in "".join(said)
    (found,) = latency_ms([bert], sizes=sizes(batches, rows=[1, 32]), seconds=0.01)
    assert set(found) == {"batch_1", "batch_32"}


def test_a_busy_machine_is_named(bert, monkeypatch):
    batches, said = as_batches([token_inputs(rows=4)]), []
    (found,) = latency_ms(
        [slow(bert, 0.1)], sizes=sizes(batches, rows=[1]), seconds=0.01, notify=said.append
    )
    assert "of a core" in found["batch_1"].busy
    assert found["batch_1"].busy in "".join(said)
    monkeypatch.setattr(footprint, "load_average", lambda: 1e6)
    monkeypatch.setattr(footprint, "_LEAST_SHARE", 0.0)
    (found,) = latency_ms([bert], sizes=sizes(batches, rows=[1]), seconds=0.01)
    assert "load average 1000000.0" in found["batch_1"].busy


def spread(ms, share):
    return Latency(ms=ms, interval=(ms * (1 - share), ms * (1 + share)), repeats=9)


@given(MS, MS, st.floats(0, 0.5), st.floats(0, 1))
def test_a_model_is_too_slow_where_all_of_the_interval_is(was, now, share, allowed):
    baseline = Baseline.of(result_of(latency_ms={"batch_1": spread(was, share)}))
    result = result_of(latency_ms={"batch_1": spread(now, share)})
    verdict = compare(result, baseline, limits=GateSpec(max_latency_increase=allowed))
    old, new = baseline.latency_ms["batch_1"], Baseline.of(result).latency_ms["batch_1"]
    surely = new.interval[0] / old.interval[1] - 1
    finding = next(one for one in verdict.findings if one.name == "max-latency-increase")
    assert finding.passed == (surely <= allowed)
    if finding.passed and now / was - 1 > allowed + 0.02:
        assert "can't be told" in finding.message


EVAL = ("eval", "m", "--data", "d.csv", "--limit", "9", "-q")


def test_latency_is_timed_as_asked_or_not_at_all(here, command_line):
    code, out, err = command_line(
        *EVAL, "--json", "--latency-length", "8,16", "--latency-batch", "2"
    )
    assert code == 0, err
    found = json.loads(out)["latency_ms"]
    assert {name: took["tokens"] for name, took in found.items()} == {
        "batch_2_length_8": 8,
        "batch_2_length_16": 16,
    }
    assert all(took["interval"][0] <= took["ms"] <= took["interval"][1] for took in found.values())
    assert json.loads(command_line(*EVAL, "--json", "--no-latency")[1])["latency_ms"] == {}
    code, out, err = command_line(*EVAL[:-1], "--latency-length", "100000")
    assert (code, out) == (2, "")
    assert "--latency-length 100000" in err
    assert "evaluating" not in err


def test_what_can_not_be_judged_is_refused_before_the_work_and_in_the_format_of_the_machine(
    here, command_line
):
    baseline = ("--baseline", "b.json")
    assert command_line("check", *EVAL[1:], *baseline, "--update-baseline", "--no-latency")[0] == 0
    (here / "other.csv").write_text("text,label\n" + "w1 w2 w3,1\nw4 w5 w6,0\n" * 9)
    for changed, named, hint in (
        (
            ("--data", "other.csv", "--limit", "9"),
            "other.csv, 9 rows",
            "as the baseline was made, or",
        ),
        (("--data", "d.csv", "--limit", "8"), "limit is 8 here and 9", "(--limit 9)"),
        (
            ("--data", "d.csv", "--limit", "9", "--metric", "f1"),
            "metric is 'f1' here and 'accuracy'",
            "(--metric accuracy)",
        ),
        (
            ("--data", "d.csv", "--limit", "9", "--max-latency-increase", "0.1"),
            "nothing in the baseline",
            "time the same sizes",
        ),
    ):
        words = ("check", "m", *changed, *baseline)
        code, out, err = command_line(*words)
        assert (code, out) == (2, ""), err
        assert named in err
        assert hint in err
        assert "evaluating" not in err
        code, out, _err = command_line(*words, "--format", "github")
        assert code == 2
        assert out.startswith("::error title=headprune check%3A it can't be told::")
        assert named in out
        code, out, _err = command_line(*words, "--format", "junit")
        assert code == 2
        suite = ElementTree.fromstring(out.encode())
        assert suite.get("errors") == "1"
        assert named in suite.find("testcase/error").get("message")
        code, out, _err = command_line(*words, "--format", "markdown")
        assert named in out


def test_other_rows_of_the_same_name_are_told_from_others(here, command_line):
    check = ("check", "m", "--data", "d.csv", "-q", "--no-latency", "--baseline", "b.json")
    assert command_line(*check, "--update-baseline")[0] == 0
    text = (here / "d.csv").read_text()
    (here / "d.csv").write_text(text.replace("w1", "w2"))
    code, _out, err = command_line(*check)
    assert code == 2
    assert "d.csv, 40 rows as it is now" in err


@pytest.mark.parametrize("error", [OSError("no such file"), AttributeError("getloadavg")])
def test_a_load_that_the_system_does_not_tell_is_none(error, monkeypatch):
    def untold():
        raise error

    monkeypatch.setattr("os.getloadavg", untold)
    assert footprint.load_average() == 0
