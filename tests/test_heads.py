"""Names, masks, scores and plans are values that survive a trip through JSON."""

import json
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headprune.artefact import read_artefact
from headprune.errors import CheckpointError, HeadpruneError, PlanError
from headprune.heads import HeadId, SiteId, select_heads
from headprune.models.manifest import Manifest
from headprune.plans import HeadScores, PruningPlan

stacks = st.sampled_from(["", "encoder", "decoder", "vision_model"])
sites = st.builds(SiteId, stacks, st.integers(0, 200), st.sampled_from(["self", "cross"]))
heads = st.builds(HeadId, sites, st.integers(0, 200))
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["heads", "values", "format", "method", "n", "seed", "remove"]), inner
        )
    ),
    max_leaves=12,
)


L0 = [HeadId(SiteId("", 0), head) for head in range(4)]
ARTEFACTS = (
    HeadScores(method="gradient", heads=L0, values=[0.25, 1.5, -3.0, 1e-7], n=3, seed=0),
    PruningPlan(remove=L0[:1], kept_per_site={"L0": 3}, reasons={"L0.H0": "the least"}, budget={"keep": 0.75}),
    Manifest(files={"model.safetensors": {"sha256": "ab" * 32, "size": 7}}),
)  # fmt: skip


@given(heads)
def test_a_head_is_what_its_name_says(head):
    assert HeadId.parse(str(head)) == head
    assert SiteId.parse(str(head.site)) == head.site


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (HeadId(SiteId("", 3), 7), "L3.H7"),
        (HeadId(SiteId("encoder", 3), 7), "encoder.L3.H7"),
        (HeadId(SiteId("decoder", 2, "cross"), 7), "decoder.L2.cross.H7"),
    ],
)
def test_names_are_the_documented_ones(head, name):
    assert str(head) == name


@given(st.text(max_size=12))
def test_any_text_is_a_head_or_an_error_of_ours(text):
    try:
        assert str(HeadId.parse(text)).replace("L", "").strip()
    except PlanError as error:
        assert repr(text) in error.what


@given(st.lists(heads, unique=True, max_size=20), st.data())
def test_scores_survive_json(names, data):
    values = data.draw(st.lists(finite, min_size=len(names), max_size=len(names)))
    scores = HeadScores(method="gradient", heads=names, values=values, n=3, seed=0)
    assert HeadScores.model_validate_json(scores.to_json()) == scores
    assert json.loads(scores.to_json())["heads"] == [str(head) for head in names]


@given(json_values)
def test_malformed_artefacts_are_refused_by_an_error_of_ours(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    for kind in (HeadScores, PruningPlan):
        with pytest.raises(CheckpointError):
            read_artefact(kind, path)


@given(st.sampled_from(ARTEFACTS), st.data())
def test_a_damaged_artefact_is_named_or_says_the_same(tmp_path_factory, artefact, data):
    """A flipped bit in a number would be another number; the checksum is of what is said, not of how it is spaced."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    content = bytearray(artefact.to_json().encode())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[where : where + data.draw(st.integers(1, 40))]
    path.write_bytes(content)
    try:
        assert read_artefact(type(artefact), path) == artefact
    except CheckpointError as error:
        assert error.hint


def test_what_was_changed_on_purpose_is_taken_without_its_checksum(tmp_path):
    path = tmp_path / "scores.json"
    document = json.loads(ARTEFACTS[0].to_json())
    document["values"][0] += 1
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match="changed after it was written"):
        read_artefact(HeadScores, path)
    del document["sha256"]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_artefact(HeadScores, path).values[0] == ARTEFACTS[0].values[0] + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"values": [1.0]},
        {"standard_errors": [1.0]},
        {"heads": ["L0.H0", "L0.H0"]},
        {"values": [1.0, float("nan")]},
        {"heads": ["L0.H0", "nonsense"]},
        {"format": 2},
        {"surprise": 1},
    ],
)
def test_scores_that_contradict_themselves_are_refused(tmp_path, changes):
    good = {
        "format": 1,
        "method": "gradient",
        "heads": ["L0.H0", "L0.H1"],
        "values": [1.0, 2.0],
        "n": 1,
        "seed": 0,
    }
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    assert read_artefact(HeadScores, path).n == 1
    path.write_text(json.dumps({**good, **changes}), encoding="utf-8")
    with pytest.raises(HeadpruneError):
        read_artefact(HeadScores, path)


def test_heads_can_be_named_in_every_documented_way():
    known = tuple(HeadId(SiteId("", layer), head) for layer in range(2) for head in range(4))
    expected = (known[1], known[3])
    assert select_heads(["L0.H3", "L0.H1"], known) == expected
    assert select_heads([known[3], "L0.H1"], known) == expected
    assert select_heads({"L0": [1, 3]}, known) == expected
    with pytest.raises(PlanError, match=r"no head L0\.H9"):
        select_heads(["L0.H9"], known)


def test_ranking_goes_from_least_to_most_important_and_ties_keep_their_order():
    names = [HeadId(SiteId("", 0), head) for head in range(4)]
    scores = HeadScores(method="x", heads=names, values=[2.0, 1.0, 2.0, 0.5], n=1, seed=0)
    assert [head.head for head in scores.ranked()] == [3, 1, 0, 2]


def test_the_package_says_its_version():
    import headprune

    assert headprune.__version__ == version("headprune")
