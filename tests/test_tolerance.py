"""--max-drop: as far as the metric surely allows, decided on rows that do nothing else."""

from pathlib import Path

import pytest
from families import build, inspected, sentences, toy_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from headprune.config import Constraints, Drop
from headprune.errors import ConfigError
from headprune.planning.constraints import with_keep
from headprune.planning.plan import make_plan
from headprune.plans import HeadScores
from headprune.tasks.rows import Example, draw, set_apart
from headprune.workflows.plan import Look, bisect, lawful_keeps


@pytest.mark.parametrize(
    ("said", "drop", "of_80"),
    [("1%", Drop(0.01, True), 0.8), ("0.02", Drop(0.02), 0.02), (0.5, Drop(0.5), 0.5), ("0%", Drop(0.0, True), 0.0)],
)  # fmt: skip
def test_a_drop_is_a_number_or_a_share(said, drop, of_80):
    recipe = Constraints(max_drop=said)
    assert recipe.max_drop == drop
    assert drop.of(80.0) == pytest.approx(of_80)
    assert drop.of(-80.0) == pytest.approx(of_80)
    assert Constraints.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("said", ["much", "-1%", "nan", "inf", ""])
def test_what_is_no_drop_is_refused(said):
    with pytest.raises(ConfigError, match="max_drop"):
        Constraints(max_drop=said)


@given(
    drops=st.lists(st.floats(0, 1), min_size=1, max_size=24).map(sorted),
    allowed=st.floats(0, 1),
)
def test_bisection_finds_the_deepest_cut_within_as_looking_everywhere_does(drops, allowed):
    points = [1 - (place + 1) / 100 for place in range(len(drops))]
    seen = []

    def look(keep):
        seen.append(keep)
        drop = drops[points.index(keep)]
        return Look(keep, drop, drop)

    looks = bisect(points, look, allowed=allowed)
    within = [one.keep for one in looks if one.worst <= allowed]
    everywhere = [keep for keep, drop in zip(points, drops, strict=True) if drop <= allowed]
    assert min(within, default=None) == min(everywhere, default=None)
    assert len(seen) == len(set(seen)) <= 5


@pytest.fixture(scope="module")
def anatomies():
    return {name: inspected(build(name)) for name in ("bert", "llama")}


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gqa": "pad"}, {"multiple_of": 2}, {"uniform": True}, {"min_heads": 3}, {"protect": ("L0",)}],
)  # fmt: skip
def test_only_cuts_that_can_be_made_are_looked_at(anatomies, name, settings):
    anatomy = anatomies[name]
    asked = Constraints(max_drop="1%", **settings)
    found = lawful_keeps(anatomy, asked)
    flat = HeadScores(
        method="none", heads=anatomy.heads, values=[0.0] * len(anatomy.heads), n=0, seed=0
    )
    for keep in found:
        constraints = with_keep(asked, keep)
        assert make_plan(flat, anatomy, constraints=constraints).remove
    assert list(found) == sorted(found, reverse=True)
    assert found[0] < 1


def test_no_input_is_on_both_sides_of_a_split():
    examples = [Example((f"text {index % 7}",), index) for index in range(20)]
    first, rest = set_apart(examples, 5)
    assert first == tuple(examples[:5])
    assert not {e.input_digest for e in first} & {e.input_digest for e in rest}
    assert {e.texts for e in rest} == {("text 5",), ("text 6",)}


def test_all_rows_drawn_are_drawn_by_content_too():
    examples = [Example((f"text {index}",), index) for index in range(20)]
    one, other = draw(examples, 20, seed=3), draw(examples[::-1], 20, seed=3)
    assert one == other != tuple(examples)


@pytest.mark.parametrize(("family", "rows"), [("llama", 120), ("bert", 16)])
def test_rows_that_are_too_few_to_decide_are_refused(family, rows, run_here, command_line):
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    build(family, **(labels if family == "bert" else {})).save_pretrained("model")
    toy_tokenizer().save_pretrained("model")
    lines = [f"{text},{('no', 'yes')[row % 2]}" for row, text in enumerate(sentences(rows))]
    Path("data.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    options = ("--data", "data.csv", "--max-drop", "5%", "--method", "magnitude", "--no-latency")
    code, _out, err = command_line("prune", "model", *options)
    assert code == 2
    assert "left to decide how far to go" in err
    assert "--max-drop" in err
