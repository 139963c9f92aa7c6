"""Tables never lose a digit: at any width, and in log files, every number and every line to copy is there, whole."""

import io
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_gate import result_of

from headprune.artefact import Heal, Latency, Proof
from headprune.config import GateSpec
from headprune.gate import Baseline, compare
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores, PruningPlan
from headprune.report.heads import agreement_table, heatmap, score_table, survey_table
from headprune.report.tables import eval_table, plan_table, prune_table, sweep_table
from headprune.report.terminal import key_value_table, show
from headprune.results import Curve, Results, Survey, SurveyedSite, Sweep, SweepPoint

WIDTHS = (60, 80, 100, 200)
DIRECTORY = "/home/somebody/experiments/2031/models that were pruned/" + "long-name-" * 9 + "0.7"
NUMBER = re.compile(r"[-+]?\d[\d,.]*\d%?|[-+]?\d%?")
METHODS = ("gradient:token", "fluctuation:channel", "ablation", "random", "unique")


def rendered(value, width):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    show(console, value)
    return console.file.getvalue()


def took(scale):
    return Latency(
        ms=1.2345 * scale, interval=(1.1111 * scale, 98.7654 * scale), repeats=9, tokens=512,
        busy="the machine is too busy: load average 7.9 on 2 cores",
    )  # fmt: skip


def evaluated(value, scale):
    low, high = sorted((value * 0.7, value * 1.4))
    return result_of(
        value, interval=(low, high), n=123_456_789, parameters=1_234_567_890_123, heads=4096,
        kv_cache_bytes_per_token=9_876_543_210,
        latency_ms={"batch_1": took(scale), "batch_32_length_8192": took(scale * 777)},
        data={"name": "a/long/name/of/data/" * 4 + "x1.csv", "split": "validation-2031"},
    )  # fmt: skip


def tables(value, scale):
    """Yield every table of the report, with numbers as long as they come."""
    proof = Proof(
        name="masked == pruned",
        passed=True,
        measured=3.1e-7,
        limit=1e-5,
        detail="of 123,456 rows " * 9,
    )
    before, after = evaluated(value, scale), evaluated(value * 1.01, scale / 3)
    common = {
        "proofs": (proof,) * 2, "weights_bytes": (98_765_432_109, 87_654_321_098),
        "heads": (4096, 1), "parameters": (10**12, 10**11),
        "removed": ("L0.H1",), "loads_with": "remote-code", "auto_class": "AutoModelForCausalLM",
    }  # fmt: skip
    results = Results(
        before=before,
        after=after,
        difference=value / 7,
        difference_interval=(-value, value),
        **common,
    )
    verdict = compare(
        after, Baseline.of(before), limits=GateSpec(max_drop=1e9, max_latency_increase=0.1)
    )
    heads = [HeadId(SiteId("decoder", layer), head) for layer in (0, 31) for head in range(40)]
    scores = [
        HeadScores(
            method=method, heads=heads, values=[value * (i + seed) for i in range(80)],
            standard_errors=[scale] * 80, n=123_456, seed=0,
        )
        for seed, method in enumerate(METHODS)
    ]  # fmt: skip
    plan = PruningPlan(
        remove=tuple(heads[3:77]), kept_per_site={"decoder.L0": 3, "decoder.L31": 1234},
        budget={
            "heads_before": 80, "heads_after": 6,
            "whole": {"parameters": 10**12, "flops_per_token": 10**14, "kv_cache_bytes_per_token": 10**9},
            "saves": {"parameters": 10**11 + 1, "flops_per_token": 10**13 + 1, "kv_cache_bytes_per_token": 7, "context": 512},
        },
    )  # fmt: skip
    point = SweepPoint(
        keep=0.35, share=0.4, heads=1234, removed=(), parameters=10**11, latency_ms=scale, value=value, interval=before.interval,
        difference=-value / 3, difference_interval=(-value, value), loss=1.0, loss_standard_error=0.1,
    )  # fmt: skip
    whole = point.model_copy(update={"keep": 1.0, "parameters": 10**12, "latency_ms": 2.5 * scale})
    curves = [
        Curve(method=method, scored_on=9, points=(whole, point), knee=0.35, within_drop=0.35)
        for method in METHODS
    ]
    curves[0] = curves[0].model_copy(update={"steps": 2, "reconstruct": "refit"})
    sweep = Sweep(
        metric="perplexity", higher_is_better=False, n=123_456, num_heads=4096, seed=0, max_drop=0.0123,
        constraints={"sites": []}, data=after.data, calibration={}, model={"name": "m"}, limit=None, versions={},
        curves=tuple(curves), objective="loss", normalize="none",
        latency={"rows": "32 rows of 24 tokens on cpu", "busy": "load average 9.1"},
    )  # fmt: skip
    site = SurveyedSite(
        name="decoder.L31.cross", path="decoder.layers.31.cross_attention", kind="cross",
        heads=tuple(map(str, heads)), key_value_heads=128, head_dim=1024, execution="zero_padded", min_heads=0,
    )  # fmt: skip
    survey = Survey(
        model_type="t5", architecture="T5ForConditionalGeneration", num_heads=4096, parameters=10**12, sites=(site,) * 2,
        refused={f"encoder.layers.{n}.a.very.long.path.to.an.attention": "the reason is long " * 9 for n in range(12)},
        saves={"keep": 0.7, "heads": 1234, "parameters": 10**11, "flops_per_token": 10**13, "context": 512,
               "kv_cache_bytes_per_token": 10**9},
    )  # fmt: skip
    heal = Heal(
        teacher={"name": "t"}, objective="loss", steps=12_345, trained_on=123_456, held_out=1234, loss=(0.1234, 0.01234), lora=8,
    )  # fmt: skip
    yield eval_table(after)
    yield prune_table(results, directory=DIRECTORY, verdict=verdict)
    yield prune_table(results.model_copy(update={"heal": heal}), directory=DIRECTORY)
    stages = {
        "heal": heal,
        "cut": after,
        "cut_difference": -value / 7,
        "cut_difference_interval": (-value, value),
    }
    yield prune_table(results.model_copy(update=stages), directory=DIRECTORY)
    yield prune_table(Results(streamed=True, **common), directory=DIRECTORY)
    yield from (plan_table(plan), sweep_table(sweep), survey_table(survey), score_table(scores[0]))
    yield from (agreement_table(scores), heatmap(scores[0], plan))
    yield key_value_table(
        {"directory": DIRECTORY, "heads": " ".join(["1024"] * 99), "n": "123,456"}
    )


def whole_in(text):
    return Counter(NUMBER.findall(text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("value", "scale"), [(0.8203, 1.0), (-0.0412, 0.001), (66_123.4567, 4321.0)]
)
def test_every_number_is_there_whole_at_any_width(value, scale, width):
    for table in tables(value, scale):
        wide, narrow = rendered(table, 100_000), rendered(table, width)
        lost = set(whole_in(wide)) - set(whole_in(narrow))
        assert not lost, narrow
        assert "…" not in narrow.replace(" … ", "")
        intervals = re.findall(r"\[[^\[\]]*\d\]", wide)
        assert not [i for i in intervals if " ".join(i.split()) not in " ".join(narrow.split())], (
            narrow
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_words_stay_whole_and_what_is_copied_is_one_line(width):
    for table in tables(0.5, 1.0):
        narrow = rendered(table, width)
        broken = [word for word in rendered(table, 100_000).split() if word not in narrow]
        assert not broken, narrow
    shown = [
        text
        for text in (rendered(table, width) for table in tables(0.5, 1.0))
        if "load it:" in text
    ]
    assert len(shown) == 4
    for text in shown:
        assert (
            f'AutoModelForCausalLM.from_pretrained("{DIRECTORY}", trust_remote_code=True)' in text
        )
        assert f'headprune.load("{DIRECTORY}")' in text


@given(
    st.lists(st.tuples(*[st.text("0123456789.,+-[]", min_size=1, max_size=30)] * 4), min_size=1, max_size=5),
    st.sampled_from(WIDTHS),
)  # fmt: skip
def test_no_cell_is_ever_cut(rows, width):
    from headprune.report.terminal import Row, Sheet

    text = rendered(Sheet([Row(row) for row in rows], titles=("a", "b", "c", "d")), width)
    for cell in (cell for row in rows for cell in row):
        assert cell in text


@given(
    st.lists(st.integers(1, 90).map("x".__mul__), min_size=1, max_size=9), st.sampled_from(WIDTHS)
)
def test_no_line_is_longer_than_the_console_but_for_a_word_that_is(words, width):
    text = rendered(key_value_table({"name": " ".join(words)}), width)
    assert all(len(line) <= width or len(line.split()) == 1 for line in text.splitlines()), text
    assert text.split() == ["name", *words]
