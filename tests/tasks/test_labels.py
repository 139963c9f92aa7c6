"""Labels mean what the model's classes mean; what the model's own predictions make doubtful of them is said."""

import json
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
import transformers
from families import build, sentences, toy_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from headprune.errors import ConfigError, DataError, HeadpruneError, ModelError
from headprune.models.find import find
from headprune.tasks.catalogue import TASKS
from headprune.tasks.doubts import doubts_of_classes, doubts_of_numbers
from headprune.tasks.labels import read_classes, read_numbers
from headprune.tasks.tables import Table
from headprune.tasks.task import for_outputs, refuse_other_head

STARS = {index: f"{index + 1} star{'s' * (index > 0)}" for index in range(5)}
MISSING = (None, "", " ", "-", -1, "-1", -1.0, "-1.0", float("nan"))


def config_of(names):
    return transformers.BertConfig(id2label=names, label2id={n: i for i, n in names.items()})


def classes(cells, names, own=()):
    table = Table("d", None, ("label",), [{"label": cell} for cell in cells], {"label": own})
    return read_classes(table, "label", config_of(names))


words = st.text("abcdefgh", min_size=2, max_size=5)


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.data(), st.sampled_from(MISSING))
def test_a_label_is_the_same_class_however_it_is_written(names, data, missing):
    """By name in any case, by index as number or text, by an index into the data's own order of classes."""
    called = dict(enumerate(names))
    expected = data.draw(st.lists(st.sampled_from([*called, None]), min_size=1, max_size=12))
    own = tuple(data.draw(st.permutations([name.upper() for name in names])))
    forms = {
        "name": lambda index: called[index],
        "case": lambda index: called[index].title(),
        "index": lambda index: index,
        "text": str,
        "float": float,
        "written float": lambda index: f"{index}.0",
    }
    for form in forms.values():
        cells = [missing if index is None else form(index) for index in expected]
        if {*map(str, cells)} in ({"-1", "1"}, {"-1.0", "1"}, {"-1", "1.0"}, {"-1.0", "1.0"}):
            continue  # two classes that are written -1 and 1
        assert classes(cells, called).indices == tuple(expected)
    cells = [missing if i is None else own.index(called[i].upper()) for i in expected]
    assert classes(cells, called, own).indices == tuple(expected)


@pytest.mark.parametrize(
    ("names", "cells", "expected"),
    [
        ({0: "1", 1: "2", 2: "3"}, ["1", "3", "2"], (0, 2, 1)),
        ({0: "1", 1: "2", 2: "3"}, [0, 1, 2], (0, 1, 2)),
        ({0: "-1", 1: "0", 2: "1"}, [-1, 0, 1], (0, 1, 2)),
        ({0: "-", 1: "+"}, ["-", "+", ""], (0, 1, None)),
        (STARS, [5, 1, 4], (4, 0, 3)),
        (STARS, [0, 4, 1], (0, 4, 1)),
        ({0: "a", 1: "A"}, ["A", "a"], (1, 0)),
        ({0: "no", 1: "yes"}, [True, False], (1, 0)),
    ],
)
def test_a_column_is_read_in_one_way(names, cells, expected):
    assert classes(cells, names).indices == expected


@pytest.mark.parametrize(
    ("names", "cells", "message"),
    [
        ({0: "no", 1: "yes"}, ["no", 1], "row 1 has the label 1"),
        ({0: "no", 1: "yes"}, ["no", "maybe"], "row 1 has the label 'maybe'"),
        ({0: "no", 1: "yes"}, [0, "01"], "row 1 has the label '01'"),
        ({0: "no", 1: "yes"}, [0, 0.5], "row 1 has the label 0.5"),
        ({0: "no", 1: "yes"}, [0, 1, "maybe", 1, 7], "row 2 has the label 'maybe'"),
        ({0: "no", 1: "yes"}, [1, [0, 1]], r"row 1 has the label \[0, 1\]"),
        ({0: "no", 1: "yes"}, [0, "01"], "row 1"),
        ({0: "no", 1: "yes"}, [0, 0.5], "row 1"),
        ({0: "no", 1: "yes"}, [0, 1, 0, "maybe"], "row 3 has the label 'maybe'"),
        ({0: "no", 1: "yes"}, [0, 1, 10**400], "row 2"),
        ({0: "no", 1: "yes"}, [1, -1, -1, 1], "labels are -1 and 1"),
        ({0: "no", 1: "yes"}, ["1.0", "-1.0"], "labels are -1 and 1"),
        ({0: "no", 1: "no"}, ["no"], "the name of several classes"),
        ({0: "no", 1: "yes"}, [0, -2], "row 1 has the label -2"),
        ({0: "a", 1: "A"}, ["a", "b"], "row 1"),
        ({0: "no", 1: "so", 2: "yes"}, [1, 2, 3], "count from 1"),
        (STARS, [1, 2, 4], "counted from 1"),
        ({0: "no", 1: "yes"}, [1, 2, "foo"], "row 2 has the label 'foo'"),
        ({1: "no", 2: "yes"}, [1, 2], "outputs count from 0"),
    ],
)
def test_labels_that_may_mean_something_else_are_refused(names, cells, message):
    with pytest.raises((DataError, ModelError), match=message) as caught:
        classes(cells, names)
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("cells", "remark"),
    [
        ([1, 2, 3] * 9, "seem to count from 1"),
        ([1] * 20, "seem to count from 1"),
        ([1, 2], None),
        ([0, 1, 2, 3], None),
        ([-1, 0, 1, 2], "with -1 the labels have as many values as the model has classes (4)"),
        ([-1, 1], None),
        ([-1, 0, 1, 2, 3], None),
        (["a", -1, "b"], None),
    ],
)
def test_odd_labels_are_remarked_on(cells, remark):
    remarks = [one for one in classes(cells, dict(enumerate("abcd"))).remarks if "careful" in one]
    assert [remark in one for one in remarks] == ([True] if remark else [])


def test_names_that_the_data_gives_and_the_model_does_not_know_are_told():
    """The order of the data's classes may be another one, and only its names would show it."""
    found = classes([0, 1, 0], {0: "NEGATIVE", 1: "POSITIVE"}, ("pos", "neg"))
    assert found.indices == (0, 1, 0)
    assert "0 is 'NEGATIVE'" in found.remarks[0]
    assert "calls its labels otherwise than the model: 0 is 'pos', 1 is 'neg'" in found.remarks[1]


def test_a_class_that_is_called_minus_one_and_default_names_raise_no_doubts():
    assert not classes([-1, 1], {0: "-1", 1: "0", 2: "1"}).remarks
    assert not classes([0, 1, 0], {0: "LABEL_0", 1: "LABEL_1"}, ("pos", "neg")).remarks


def test_spaces_around_the_name_of_a_class_are_none_of_it():
    assert classes(["neg", " pos "], {0: "neg ", 1: " pos"}).indices == (0, 1)


def test_a_number_is_missing_where_the_scale_has_none_like_it():
    def numbers(cells):
        table = Table("d", None, ("score",), [{"score": cell} for cell in cells])
        return read_numbers(table, "score")

    assert numbers([0.5, -1, 3, "", "-", None]) == (0.5, None, 3, None, None, None)
    assert numbers([-1.0, -1.0]) == (None, None)
    assert numbers([-1, -0.5, 1]) == (-1, -0.5, 1)
    assert numbers([-1, 0, 1]) == (-1, 0, 1)
    assert numbers([Decimal("0.25"), Decimal("-1"), Decimal(2)]) == (0.25, None, 2)
    for odd in ("high", math.inf, -math.inf, "1e999", 10**400, Decimal("Infinity"), True, [1]):
        with pytest.raises(DataError, match="row 1 .*not a number, or no finite one"):
            numbers([1, odd])


NAMED = {"0": "no", "1": "yes"}


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama"])
@pytest.mark.parametrize(
    "maps",
    [
        {"id2label": NAMED},
        {"id2label": NAMED, "label2id": {"LABEL_0": 0, "LABEL_1": 1}},
        {"id2label": NAMED, "label2id": {"No": 0, "Yes": 1}},
        {"label2id": {"no": 0, "yes": 1}},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"no": 0, "yes": 1}},
    ],
)
def test_one_map_of_classes_is_enough_and_a_default_one_says_nothing(tmp_path, family, maps):
    build(family).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("label2id", None), settings.pop("id2label", None)
    path.write_text(json.dumps({**settings, **maps}))
    config = find(str(tmp_path), weights=False).config
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.label2id == {"no": 0, "yes": 1}
    for wrong in ({"no": 1, "yes": 0}, {"no": 0, "yes": 1, "maybe": 2}, {"no": 0, "maybe": 1}):
        path.write_text(json.dumps({**settings, "id2label": NAMED, "label2id": wrong}))
        with pytest.raises(ModelError, match="label2id says") as caught:
            find(str(tmp_path), weights=False)
        assert "config.json" in caught.value.where
        assert caught.value.hint


@given(st.integers(2, 9), st.integers(0, 10_000), st.floats(0.6, 1))
def test_a_permutation_of_labels_is_noticed_and_the_right_order_is_not(count, seed, skill):
    rng = np.random.default_rng(seed)
    said = rng.integers(0, count, 300)
    known = rng.random(300) < skill
    true = np.where(known, said, rng.integers(0, count, 300))
    names = {index: f"c{index}" for index in range(count)}
    assert doubts_of_classes(said.astype(float), true.astype(float), names) == ()
    order = np.roll(np.arange(count), 1)
    permuted = order[true]
    found = doubts_of_classes(said.astype(float), permuted.astype(float), names)
    assert any("permuted" in doubt for doubt in found)
    assert any("below chance" in doubt for doubt in found) or skill < 0.9


def test_chance_raises_few_doubts():
    """A model that knows nothing is at chance, and not below it: one in a hundred or so is taken for worse."""
    rng = np.random.default_rng(0)
    names = dict(enumerate("abc"))
    drawn = [
        doubts_of_classes(*rng.integers(0, 3, (2, 100)).astype(float), names) for _ in range(300)
    ]
    assert sum(map(bool, drawn)) <= 15
    assert not any("permuted" in doubt for doubts in drawn for doubt in doubts)


def test_numbers_that_fall_or_lie_elsewhere_are_noticed():
    rng = np.random.default_rng(0)
    true = rng.random(60)
    said = true + rng.normal(0, 0.1, 60)
    assert doubts_of_numbers(said, true, same_scale=True) == ()
    assert "fall as" in doubts_of_numbers(-said, true, same_scale=False)[0]
    assert "another scale" in doubts_of_numbers(9 * said, true, same_scale=True)[0]
    assert doubts_of_numbers(9 * said, true, same_scale=False) == ()


@pytest.fixture
def labelled(run_here):
    """A directory with a classifier of three classes, and texts with what it says of them."""
    names = {0: "left", 1: "right", 2: "straight"}
    model = build("bert", id2label=names, label2id={n: i for i, n in names.items()})
    model.save_pretrained(run_here / "m")
    toy_tokenizer().save_pretrained(run_here / "m")
    texts = sentences(120, seed=3)
    with torch.no_grad():
        said = [
            int(model(**toy_tokenizer()(t, return_tensors="pt")).logits.argmax()) for t in texts
        ]
    return run_here, list(zip(texts, said, strict=True)), names


def write(path, rows, header="text,label"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


COMMANDS = {
    "eval": ("eval", "m"),
    "score": ("score", "m", "--method", "gradient"),
    "prune": ("prune", "m", "--method", "gradient", "--keep", "0.5", "--dry-run"),
    "sweep": ("sweep", "m", "--methods", "random", "--points", "0.5", "--no-latency"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_that_labels_are_in_another_order(labelled, command_line, command):
    here, rows, _names = labelled
    write(here / "d.csv", [(text, (index + 1) % 3) for text, index in rows])
    code, out, err = command_line(*COMMANDS[command], "--data", "d.csv", "--json")
    assert code == 0, err
    careful = [line for line in err.splitlines() if line.startswith("careful")]
    assert any("below chance" in line for line in careful)
    assert any("permuted" in line for line in careful)
    if command != "prune":
        assert "permuted" in out, "it stands in the results"
    write(here / "d.csv", rows)
    code, _out, err = command_line(*COMMANDS[command], "--data", "d.csv", "--json")
    assert code == 0, err
    assert "below chance" not in err
    assert "permuted" not in err


def test_rows_without_a_label_are_left_out_and_counted(labelled, command_line):
    here, rows, names = labelled
    written = [
        {"text": text, "label": (-1, "-", "", None)[n] if n < 4 else names[index]}
        for n, (text, index) in enumerate(rows)
    ]
    (here / "d.jsonl").write_text(
        "\n".join(json.dumps({**row, "label": str(row["label"] or "")}) for row in written)
    )
    code, out, err = command_line("eval", "m", "--data", "d.jsonl", "--json")
    assert code == 0, err
    assert "4 rows have no label in 'label'" in err
    assert (json.loads(out)["n"], json.loads(out)["value"]) == (116, 1.0)


def test_a_split_without_labels_is_named_and_scores_without_any(labelled, command_line):
    here, rows, names = labelled
    write(here / "none.csv", [(text, -1) for text, _index in rows])
    for words in (("score",), ("eval",)):
        code, _out, err = command_line(*words, "m", "--data", "none.csv")
        assert code == 2
        assert "this split has no labels" in err
    distill = ("--data", "none.csv", "--objective", "distill", "--method", "gradient")
    code, _out, err = command_line("score", "m", *distill, "--json")
    assert code == 0, err
    # The same rows choose where the others, which report, have labels.
    write(here / "all.csv", [(text, names[index]) for text, index in rows])
    latest = ("--keep", "0.5", "--scores", "latest", "--dry-run")
    data = ("--data", "all.csv", *distill[2:])
    code, _out, err = command_line("prune", "m", *data, *latest)
    assert code == 0, err


def test_a_model_of_one_output_is_scored_with_and_without_numbers(run_here, command_line):
    model = build("bert", num_labels=1)
    model.save_pretrained(run_here / "m")
    toy_tokenizer().save_pretrained(run_here / "m")
    texts = sentences(60, seed=1)
    with torch.no_grad():
        said = [model(**toy_tokenizer()(t, return_tensors="pt")).logits.item() for t in texts]
    write(run_here / "d.csv", zip(texts, said, strict=True), "text,score")
    code, out, err = command_line("eval", "m", "--data", "d.csv", "--json")
    assert code == 0, err
    assert (json.loads(out)["metric"], json.loads(out)["value"]) == ("spearman", pytest.approx(1))
    assert "task regression" in err
    write(run_here / "bare.csv", [(text,) for text in texts], "text")
    for words in (
        ("--data", "d.csv"),
        ("--data", "bare.csv", "--objective", "distill"),
        ("--data", "bare.csv", "--objective", "distill", "--task", "classification"),
    ):
        code, _out, err = command_line("score", "m", *words, "--method", "gradient")
        assert code == 0, err
    code, _out, err = command_line("eval", "m", "--data", "d.csv", "--metric", "accuracy")
    assert code == 2
    assert "accuracy compares classes, and the task predicts numbers" in err


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("architecture", "own"),
    [
        ("BertForMaskedLM", ()),
        ("RobertaForTokenClassification", ()),
        ("BertForQuestionAnswering", ()),
        ("BertForSequenceClassification", ("classification", "regression")),
    ],
)
def test_a_head_that_a_task_would_lose_is_refused(tmp_path, task, architecture, own):
    config = transformers.BertConfig(architectures=[architecture])
    if task in own:
        refuse_other_head(task, config, model_directory=tmp_path)
        return
    with pytest.raises(ConfigError, match=architecture) as caught:
        refuse_other_head(task, config, model_directory=tmp_path)
    assert ("headprune.score(" in caught.value.hint) == (not own)
    assert for_outputs("classification", transformers.BertConfig(num_labels=1)) == "regression"


def test_errors_have_three_parts():
    with pytest.raises(HeadpruneError) as caught:
        classes([1, 2, 3], {0: "a", 1: "b", 2: "c"})
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()] == [
        "error",
        "in",
        "try",
    ]
