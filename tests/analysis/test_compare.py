"""Documents compared: laws that hold whatever the numbers are."""

import json
import random
from math import atanh, tanh

import pytest
from rich.console import Console
from scipy.stats import spearmanr
from typer.testing import CliRunner

from headprune.analysis.compare import Subject, compare
from headprune.analysis.comparison import BINS, Comparison
from headprune.analysis.roles import Measure, Roles
from headprune.artefact import read_artefact
from headprune.cli.app import app
from headprune.errors import CheckpointError
from headprune.heads import HeadId
from headprune.plans import HeadScores, PruningPlan
from headprune.report.compare import comparison_tables
from headprune.workflows.compare import compare_documents

MODEL = {"name": "demo:minilm", "model_type": "bert", "fingerprint": "f0"}


def names(layers=4, heads=3, *, stack=""):
    return [f"{stack}L{layer}.H{head}" for layer in range(layers) for head in range(heads)]


def scored(heads, *, seed=0, model=MODEL, error=0.01, **changes):
    draw = random.Random(seed)
    values = [draw.random() for _ in heads]
    return HeadScores(**{
        "method": "ablation", "heads": heads, "values": values, "standard_errors": [error] * len(heads), "n": 5, "seed": 0,
        "model": model, "data": {"name": f"rows{seed}.csv", "n": 5}, **changes,
    })  # fmt: skip


def roles_of(heads, having, *, model=MODEL, half=0.01, role="sink"):
    values = [0.9 if head in having else 0.1 for head in heads]
    measure = Measure(
        role=role,
        values=values,
        low=[value - half for value in values],
        high=[value + half for value in values],
        baseline=[0.1] * len(heads),
        queries=[100] * len(heads),
        examples=[10] * len(heads),
        passes=[head in having for head in heads],
    )
    return Roles(heads=heads, measures=(measure,), thresholds={role: "> 0.3"}, model=model)


def subject(name, *documents, removed=()):
    heads = {head for one in documents for head in one.heads}
    gone = {HeadId.parse(head) for head in removed}
    roles = [one for one in documents if isinstance(one, Roles)]
    scores = tuple(one for one in documents if isinstance(one, HeadScores))
    return Subject(name, frozenset(heads - gone), roles[0] if roles else None, scores)


def test_a_document_is_like_itself():
    documents = scored(names()), roles_of(names(), ["L1.H2", "L3.H0"])
    comparison = compare([subject("a", *documents), subject("b", *documents)])
    assert [one.measure for one in comparison.correlations] == ["sink", "importance:ablation"]
    for one in comparison.correlations:
        assert one.value == pytest.approx(1, abs=1e-12)
        assert one.interval == (one.value, one.value)
        assert one.heads == 12
    assert comparison.lost == comparison.only_in == ()
    assert comparison.different == {}
    by_subject = {name: [] for name in "ab"}
    for one in comparison.profiles:
        by_subject[one.subject].append(one.model_copy(update={"subject": ""}))
    assert by_subject["a"] == by_subject["b"]


def test_the_order_of_heads_in_a_document_does_not_matter():
    first, second = scored(names()), scored(names(), seed=1)
    shuffled = list(zip(second.heads, second.values, strict=True))
    random.Random(3).shuffle(shuffled)
    heads, values = zip(*shuffled, strict=True)
    other = second.model_copy(update={"heads": heads, "values": values})
    expected, found = (compare([subject("a", first), subject("b", one)]) for one in (second, other))
    assert found.correlations == expected.correlations
    for one, same in zip(found.profiles, expected.profiles, strict=True):
        assert one.values == pytest.approx(same.values)
    assert {(one.subject, frozenset(one.heads)) for one in found.only_in} == {
        (one.subject, frozenset(one.heads)) for one in expected.only_in
    }


def test_the_correlation_is_spearman_s_with_its_interval():
    first, second = scored(names()), scored(names(), seed=1)
    (found,) = compare([subject("a", first), subject("b", second)]).correlations
    value = spearmanr(first.values, second.values).statistic
    half = 1.959964 * ((1 + value**2 / 2) / 9) ** 0.5
    assert found.value == pytest.approx(value)
    assert found.interval == pytest.approx(
        (tanh(atanh(value) - half), tanh(atanh(value) + half)), abs=1e-4
    )


def test_few_heads_and_equal_scores_have_no_correlation():
    few = names(1, 3)
    (one,) = compare([subject("a", scored(few)), subject("b", scored(few, seed=1))]).correlations
    assert (one.heads, one.interval) == (3, None)
    level = scored(few, values=[1.0] * 3)
    (one,) = compare([subject("a", level), subject("b", level)]).correlations
    assert one.value is None


def test_depth_is_relative_to_the_number_of_layers():
    small, large = names(3, 2), names(11, 2)
    model = {**MODEL, "fingerprint": "f1"}
    comparison = compare([
        subject("small", roles_of(small, ["L0.H0", "L2.H0", "L2.H1"])),
        subject("large", roles_of(large, ["L10.H1", "L1.H0"], model=model)),
    ])  # fmt: skip
    profile = {one.subject: one for one in comparison.profiles}
    assert profile["small"].values == (0.5, None, 0.0, None, 1.0)
    assert profile["small"].heads == (2, 0, 2, 0, 2)
    assert profile["large"].heads == (4, 4, 4, 4, 6)
    assert profile["large"].values == (0.25, 0, 0, 0, pytest.approx(1 / 6))
    assert profile["large"].overall == pytest.approx(2 / 22)
    assert comparison.correlations == ()
    assert "small, large" in comparison.different


def test_importance_by_depth_is_the_mean_rank():
    heads = names(5, 1)
    scores = scored(heads, values=[50.0, 10.0, 20.0, 30.0, 40.0])
    profile = compare([subject("a", scores), subject("b", scores)]).profiles[0]
    assert profile.values == (1.0, 0.0, 0.25, 0.5, 0.75)
    assert profile.overall == 0.5


def test_each_kind_of_attention_has_a_profile_of_its_own():
    heads = [*names(2, 2, stack="encoder."), *names(3, 2, stack="decoder."), "decoder.L1.cross.H0"]
    profiles = compare([subject("a", scored(heads)), subject("b", scored(heads))]).profiles
    parts = [one.part for one in profiles if one.subject == "a"]
    assert parts == ["encoder", "decoder", "decoder.cross"]
    assert [sum(one.heads) for one in profiles[:3]] == [4, 6, 1]
    assert profiles[2].heads == (0, 0, 1, 0, 0)


def test_what_pruning_removed_is_named_with_its_roles():
    heads, sinks = names(), ["L1.H2", "L3.H0", "L3.H1"]
    before = subject("before", scored(heads), roles_of(heads, sinks))
    pruned = {**MODEL, "fingerprint": "f1", "source": {"fingerprint": "f0"}}
    kept = [head for head in heads if head not in ("L0.H0", "L3.H0")]
    after = subject(
        "after", scored(kept, model=pruned), roles_of(kept, ["L1.H2", "L2.H0"], model=pruned)
    )
    comparison = compare([before, after])
    (lost,) = comparison.lost
    assert [str(head) for head in lost.heads] == ["L0.H0", "L3.H0"]
    assert (lost.first, lost.second, lost.having) == ("before", "after", {"sink": 3})
    assert [str(head) for head in lost.roles["sink"]] == ["L3.H0"]
    found = {(one.measure, one.subject): [*map(str, one.heads)] for one in comparison.only_in}
    assert found["sink", "before"] == ["L3.H1"]
    assert found["sink", "after"] == ["L2.H0"]
    assert {one.heads for one in comparison.correlations} == {10}
    last = [one.heads[-1] for one in comparison.profiles if one.subject == "after"]
    assert set(last) == {2}


def test_heads_of_the_same_name_in_other_models_are_not_matched():
    first = subject("a", scored(names()))
    other_type = subject("b", scored(names(), model={**MODEL, "model_type": "gpt2", "fingerprint": "f1"}))  # fmt: skip
    larger = subject("c", scored(names(6), model={**MODEL, "fingerprint": "f2"}))
    checkpoint = subject("d", scored(names(), model={**MODEL, "fingerprint": "f3"}))
    comparison = compare([first, other_type, larger, checkpoint])
    assert comparison.correlations == comparison.only_in == ()
    assert "gpt2" in comparison.different["a, b"]
    assert "other weights" in comparison.different["a, d"], "as in models of two languages"
    assert comparison.lost == ()


def test_a_head_matters_in_one_alone_if_its_intervals_say_so():
    heads = names(2, 2)
    high = scored(heads, values=[9.0, 1.0, 1.0, 1.0], error=0.1)  # mean 3
    low = scored(heads, values=[1.0, 9.0, 1.0, 1.0], error=0.1)
    unsure = scored(heads, values=[1.0, 9.0, 1.0, 1.0], standard_errors=[5.0, 0.1, 0.1, 0.1])
    found = compare([subject("a", high), subject("b", low)]).only_in
    assert [(one.subject, *map(str, one.heads)) for one in found] == [("a", "L0.H0"), ("b", "L0.H1")]  # fmt: skip
    found = compare([subject("a", high), subject("b", low), subject("c", unsure)]).only_in
    assert found == ()
    scaled = scored(heads, values=[1e3, 9e3, 1e3, 1e3], error=100)
    assert len(compare([subject("a", high), subject("b", scaled)]).only_in) == 2


def test_a_role_differs_only_if_intervals_do_not_overlap():
    heads = names(2, 2)
    for half, count in ((0.1, 1), (0.5, 0)):
        one = subject("a", roles_of(heads, ["L0.H1"], half=half))
        other = subject("b", roles_of(heads, [], half=half))
        assert len(compare([one, other]).only_in) == count


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document.to_json())
    return path


def test_files_runs_and_pruned_models_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "whole" / "scores.json", scored(names()))
    write(tmp_path / "whole" / "scores.gradient.json", scored(names(), seed=2, method="gradient"))
    write(tmp_path / "whole" / "roles.json", roles_of(names(), ["L0.H0"]))
    write(tmp_path / "smaller" / "scores.json", scored(names()))
    write(tmp_path / "smaller" / "plan.json", PruningPlan(remove=["L0.H0"], kept_per_site={}))
    alone = write(tmp_path / "other" / "roles.json", roles_of(names(), ["L2.H0"]))
    comparison, path = compare_documents([tmp_path / "whole", tmp_path / "smaller", alone])
    assert read_artefact(Comparison, path) == comparison
    assert str(path).endswith("001-compare/compare.json")
    assert [(one.name, one.heads) for one in comparison.subjects] == [("whole", 12), ("smaller", 11), ("other", 12)]  # fmt: skip
    assert comparison.lost[0].roles == {"sink": (HeadId.parse("L0.H0"),)}
    assert {one.measure for one in comparison.correlations} == {"sink", "importance:ablation"}


def test_documents_of_an_earlier_version_are_read(tmp_path):
    earlier = scored(["L0.H0", "L0.H1"], values=[1.0, 2.0]).model_dump(mode="json")
    for name in ("one_head", "steps", "products", "model", "data"):
        del earlier[name]
    earlier["race"] = None
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(earlier))
    named = [tmp_path / name for name in ("a.json", "b.json")]
    comparison, _path = compare_documents(named, run_dir=str(tmp_path / "out"))
    assert comparison.correlations[0].value == pytest.approx(1)


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = write(tmp_path / "a" / "scores.json", scored(names()))
    with pytest.raises(CheckpointError, match="there is no|No such"):
        compare_documents([one, tmp_path / "b"], run_dir=str(tmp_path / "out"))
    write(tmp_path / "b" / "plan.json", PruningPlan(remove=["L0.H0"], kept_per_site={}))
    with pytest.raises(CheckpointError, match="no roles and no scores"):
        compare_documents([one, tmp_path / "b"], run_dir=str(tmp_path / "out"))
    write(tmp_path / "a" / "roles.json", roles_of(names(), [], model={"fingerprint": "f9"}))
    with pytest.raises(CheckpointError, match="several models"):
        compare_documents([one, tmp_path / "a"], run_dir=str(tmp_path / "out"))


def test_the_command_shows_it_at_80_columns_and_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heads = names(6, 4)
    paths = [
        write(tmp_path / name / "scores.json", scored(heads, seed=seed))
        for seed, name in enumerate(["en", "de", "fr"])
    ]
    write(tmp_path / "en" / "roles.json", roles_of(heads, heads[:3]))
    result = CliRunner().invoke(app, ["compare", "en", *map(str, paths[1:]), "--json"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["compare", "en"]).exit_code != 0
    document = json.loads(result.stdout)
    assert [one["name"] for one in document["subjects"]] == ["en", "de", "fr"]
    assert all(len(one["values"]) == BINS for one in document["profiles"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(comparison_tables(Comparison.model_validate(document)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:3] == ["sink", "en", "12%"] for line in lines), lines
    assert any("[" in line and line.startswith("ablation") for line in lines)
