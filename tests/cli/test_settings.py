"""Command line over file over default; an unknown key is an error with a suggestion; every shipped recipe is valid."""

from pathlib import Path

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headprune.config import DEMO, SECTION_OF, Constraints, Settings, load_settings, merged
from headprune.errors import ConfigError, HeadpruneError

ROOT = Path(__file__).parents[2]


def recipe_file(folder, text):
    path = folder / "headprune.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe_file(tmp_path, "model: m\nkeep: 0.5\nseed: 3\nuniform: true\n")
    settings, where = load_settings(
        {"keep": 0.9, "seed": 0, "uniform": False, "limit": None}, folder=tmp_path
    )
    assert (settings.model.model, settings.data.seed) == ("m", 0)
    assert (settings.plan.keep, settings.plan.uniform, settings.plan.min_heads) == (0.9, False, 1)
    assert "headprune.yaml" in where


def test_without_anything_it_is_the_demo_and_says_so(tmp_path):
    settings, where = load_settings({"keep": 0.7}, folder=tmp_path)
    assert settings == DEMO.replaced(keep=0.7)
    assert "demo" in where
    assert load_settings({"model": "x"}, folder=tmp_path)[0].data.data is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kepe: 0.7", "unknown setting 'kepe'", "did you mean 'keep'"),
        ("keep: 0", "`keep` can't be 0", "`keep`"),
        ("keep: 1.5", "`keep` can't be 1.5", "`keep`"),
        ("keep: lots", "`keep` can't be 'lots'", "`keep`"),
        ("method: gradiant", "`method` can't be 'gradiant'", "`method`"),
        ("limit: 0", "`limit` can't be 0", "`limit`"),
        ("max_drop: much", "`max_drop` can't be 'much': a number in", "`max_drop`"),
        ("- a\n- b", "is a list", "name: value"),
        ("a: b: c", "not YAML", "indentation"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_where_and_how(tmp_path, text, message, hint):
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings({}, folder=tmp_path)
    assert str(path) in caught.value.where
    assert hint in caught.value.hint


# In a fresh checkout the first texts wait for hypothesis's table of characters.
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(sorted(SECTION_OF)),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=5)
        | st.floats()
        | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_settings_are_written_as_they_are_read_or_an_error_of_ours(tmp_path_factory, settings):
    try:
        settings, _where = load_settings(settings, folder=ROOT / "tests")
    except HeadpruneError:
        return
    path = tmp_path_factory.mktemp("again") / "again.yaml"
    path.write_text(settings.to_yaml(), encoding="utf-8")
    again, _where = load_settings({}, file=path, trust_metric_code=True)
    assert again == settings.replaced(recipe=None)


@given(
    st.floats(0, allow_infinity=False, allow_nan=False).map(repr)
    | st.floats(0, 1e9).map(lambda percent: f"{percent!r}%")
)
@example("952326449.0523825%")
def test_a_drop_is_written_as_it_is_read(said):
    plan = Constraints(max_drop=said)
    assert Constraints(max_drop=str(plan.max_drop)) == plan


def test_python_in_a_recipe_is_not_run(tmp_path):
    recipe_file(tmp_path, "model: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not YAML"):
        load_settings({}, folder=tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_shipped_recipe_is_valid(path):
    settings, _where = load_settings({}, file=path)
    assert settings.model.model
    assert path.read_text().startswith("#"), "a recipe says on top what it gave"


def test_the_demo_recipe_is_the_built_in_one():
    settings, _where = load_settings({}, file=ROOT / "configs" / "demo.yaml")
    assert (settings.model, settings.data, settings.score) == (DEMO.model, DEMO.data, DEMO.score)


FILE = {"model": "m", "data": "d.csv", "revision": "r1"}
BUDGET = {
    "keep": 0.5, "heads": 9, "target_flops": "80%", "target_parameters": "0.9",
    "target_kv_cache": "0.5", "target_latency": "12ms", "max_drop": "1%",
}  # fmt: skip


@given(st.sampled_from(sorted(BUDGET)), st.sets(st.sampled_from(sorted(BUDGET)), max_size=3))
def test_a_budget_of_the_command_line_is_the_only_one(said, read):
    settings = merged({**FILE, **{name: BUDGET[name] for name in read}}, {said: BUDGET[said]})
    assert {name for name in BUDGET if name in settings} == {said}


def test_the_limits_of_a_check_are_no_budget(tmp_path):
    path = recipe_file(tmp_path, "model: m\nkeep: 0.5\ncheck: {baseline: b.json, max_drop: 1%}\n")
    settings, _where = load_settings({"heads": 9}, file=path)
    assert settings.plan.budgets == {"heads": 9}
    assert str(settings.gate.max_drop) == "1%"
    path.write_text("model: m\nbaseline: b.json\n")
    with pytest.raises(ConfigError, match="unknown setting 'baseline'") as caught:
        load_settings({}, file=path)
    assert "`check:`" in caught.value.hint


@pytest.mark.parametrize("where", ["file", "command line"])
def test_two_budgets_contradict(tmp_path, where):
    path = recipe_file(
        tmp_path, "model: m\n" + ("keep: 0.5\nmax_drop: 1%\n" if where == "file" else "")
    )
    given = {} if where == "file" else {"keep": 0.5, "max_drop": "1%"}
    with pytest.raises(ConfigError, match="2 budgets") as caught:
        load_settings(given, file=path)
    assert (str(path) in caught.value.where) == (where == "file")
    assert "`keep=0.5`, `max_drop=1%`" in caught.value.where


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ({"data": "new.csv"}, {"split"}),
        ({"eval_data": "new.csv"}, {"eval_split"}),
        ({"model": "other"}, {"revision"}),
        ({"metric": "f1"}, {"higher_is_better"}),
        ({"epochs": 1}, {"max_steps"}),
        ({"method": "random"}, {"scores"}),
    ],
)
def test_what_belongs_to_a_displaced_setting_goes_with_it(said, gone):
    read = {
        **FILE, "split": "s", "eval_data": "e.csv", "eval_split": "t", "metric": "own",
        "higher_is_better": False, "max_steps": 3, "scores": "s.json",
    }  # fmt: skip
    settings = merged(read, said)
    assert settings.items() >= said.items()
    assert {name for name in read if name not in settings} == gone


def test_the_split_that_reports_goes_with_the_data_that_it_is_of():
    read = {"data": "a.csv", "eval_split": "t"}
    assert merged(read, {"data": "b.csv"}) == {"data": "b.csv"}
    assert merged({**read, "eval_data": "e.csv"}, {"data": "b.csv"})["eval_split"] == "t"


@given(
    st.fixed_dictionaries({}, optional={name: st.just(name) for name in ("eval_data", "eval_split", "split")}),
    st.sampled_from(["data", "eval_data", "split", "eval_split"]),
)  # fmt: skip
def test_a_command_that_measures_measures_what_was_said(read, name):
    data = Settings.of(**merged({**FILE, **read}, {name: "said"}, measures=True)).data
    assert "said" in data.evaluation_source
    if name == "data":
        assert data.evaluation_source == ("said", None)


@pytest.mark.parametrize(
    ("text", "given", "is_of_the_file"),
    [
        ("check: {baseline: b}", {"check.max_drop": "abc"}, False),
        ("check: {max_drop: abc}", {"check.baseline": "b"}, True),
        ("limit: 0", {"out": "o"}, True),
        ("latency_batch: 0", {"latency": True}, True),
        ("seed: 1", {"limit": 0}, False),
    ],
)
def test_a_wrong_value_is_blamed_on_whoever_said_it(tmp_path, text, given, is_of_the_file):
    path = recipe_file(tmp_path, f"model: m\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(given, folder=tmp_path)
    assert (str(path) in caught.value.where) == is_of_the_file
