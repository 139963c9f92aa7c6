"""Command line over file over default; an unknown key is an error with a suggestion; every shipped recipe is valid."""

from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from headprune.config import DEMO, Recipe, load_recipe
from headprune.errors import ConfigError, HeadpruneError
from headprune.precedence import merged
from headprune.subject import evaluation_source

ROOT = Path(__file__).parent.parent


def recipe_file(folder, text):
    path = folder / "headprune.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe_file(tmp_path, "model: m\nkeep: 0.5\nseed: 3\nuniform: true\n")
    recipe, where = load_recipe(
        {"keep": 0.9, "seed": 0, "uniform": False, "limit": None}, folder=tmp_path
    )
    assert (recipe.model, recipe.keep, recipe.seed, recipe.uniform) == ("m", 0.9, 0, False)
    assert recipe.min_heads == 1
    assert "headprune.yaml" in where


def test_without_anything_it_is_the_demo_and_says_so(tmp_path):
    recipe, where = load_recipe({"keep": 0.7}, folder=tmp_path)
    assert recipe == DEMO.model_copy(update={"keep": 0.7})
    assert "demo" in where
    assert load_recipe({"model": "x"}, folder=tmp_path)[0].data is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kepe: 0.7", "unknown setting 'kepe'", "did you mean 'keep'"),
        ("keep: 0", "--keep can't be 0", "--keep"),
        ("keep: 1.5", "--keep can't be 1.5", "--keep"),
        ("keep: lots", "--keep can't be 'lots'", "--keep"),
        ("method: gradiant", "--method can't be 'gradiant'", "--method"),
        ("limit: 0", "--limit can't be 0", "--limit"),
        ("max_drop: much", "--max-drop can't be 'much': a number in", "--max-drop"),
        ("- a\n- b", "is a list", "name: value"),
        ("a: b: c", "not YAML", "indentation"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_where_and_how(tmp_path, text, message, hint):
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe({}, folder=tmp_path)
    assert str(path) in caught.value.where
    assert hint in caught.value.hint


# In a fresh checkout the first texts wait for hypothesis's table of characters.
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(sorted(Recipe.model_fields)),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=5)
        | st.floats()
        | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_settings_are_a_recipe_or_an_error_of_ours(settings):
    try:
        recipe, _where = load_recipe(settings, folder=ROOT / "tests")
    except HeadpruneError:
        return
    again = yaml.safe_load(recipe.to_yaml()) or {}
    assert Recipe.model_validate(again) == recipe


@given(
    st.floats(0, allow_infinity=False, allow_nan=False).map(repr)
    | st.floats(0, 1e9).map(lambda percent: f"{percent!r}%")
)
@example("952326449.0523825%")
def test_a_drop_is_written_as_it_is_read(said):
    recipe = Recipe(max_drop=said)
    assert Recipe(max_drop=str(recipe.max_drop)) == recipe


def test_python_in_a_recipe_is_not_run(tmp_path):
    recipe_file(tmp_path, "model: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not YAML"):
        load_recipe({}, folder=tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_shipped_recipe_is_valid(path):
    recipe, _where = load_recipe({}, file=path)
    assert recipe.model
    assert path.read_text().startswith("#"), "a recipe says on top what it gave"


def test_the_demo_recipe_is_the_built_in_one():
    recipe, _where = load_recipe({}, file=ROOT / "configs" / "demo.yaml")
    same = (
        "model",
        "task",
        "data",
        "split",
        "eval_data",
        "eval_split",
        "num_samples",
        "seed",
        "method",
    )
    assert [getattr(recipe, name) for name in same] == [getattr(DEMO, name) for name in same]


FILE = {"model": "m", "data": "d.csv", "revision": "r1"}
BUDGET = {
    "keep": 0.5, "heads": 9, "target_flops": "80%", "target_parameters": "0.9",
    "target_kv_cache": "0.5", "target_latency": "12ms", "max_drop": "1%",
}  # fmt: skip


@given(st.sampled_from(sorted(BUDGET)), st.sets(st.sampled_from(sorted(BUDGET)), max_size=3))
def test_a_budget_that_is_said_is_the_only_one_but_for_the_limit_of_a_check(said, read):
    settings = merged({**FILE, **{name: BUDGET[name] for name in read}}, {said: BUDGET[said]})
    left = {name for name in BUDGET if name in settings}
    is_limit = "max_drop" in read and len(read) > 1
    assert left == ({said, "max_drop"} if is_limit else {said})
    beside_a_baseline = merged({**FILE, "baseline": "b", "max_drop": 0.01}, {"keep": 0.3})
    assert beside_a_baseline["max_drop"] == 0.01


def test_two_budgets_on_the_command_line_contradict():
    with pytest.raises(ConfigError, match="said twice"):
        load_recipe({"model": "m", "keep": 0.5, "max_drop": "1%"})


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
    recipe = Recipe(**merged({**FILE, **read}, {name: "said"}, measures=True))
    assert "said" in evaluation_source(recipe)
    if name == "data":
        assert evaluation_source(recipe) == ("said", None)
