"""How alike heads are, against scipy's own divergence of full maps of the model's eager attention."""

import json
from math import log, sqrt

import numpy as np
import pytest
import torch
from families import build, inspected, t5
from scipy.spatial.distance import cdist, jensenshannon
from test_statistics import as_batch, rows

import headprune as hp
from headprune.analysis.distances import clustered, scaled
from headprune.analysis.likeness import SMOOTHING, Similarity
from headprune.analysis.similarity import closest, compare_heads, successors
from headprune.artefact import read_artefact
from headprune.heads import HeadId
from headprune.passes import RunContext


def compared(model, anatomy, batches):
    return compare_heads(model, anatomy, batches, context=RunContext())


def full_maps(model, inputs):
    """Return the weights of every row without its padding: [heads of all layers, queries, keys]."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        yield torch.cat([one[row, :, :length, :length] for one in maps]).double().numpy()


def by_hand(one, other):
    """Return the divergence of two heads at every query of a row."""
    keys = one.shape[1]
    smooth = [(1 - SMOOTHING) * head + SMOOTHING / keys for head in (one, other)]
    with np.errstate(invalid="ignore"):  # of two equal ones it takes the root of -1e-17
        return np.nan_to_num(jensenshannon(*smooth, axis=1)) ** 2


def check(group, maps, *, owner=None):
    maps = list(maps)
    owner = owner or range(len(maps))
    n = max(owner) + 1
    for i in range(len(group.heads)):
        for j in range(i):
            totals, counts = np.zeros(n), np.zeros(n)
            for example, weights in zip(owner, maps, strict=True):
                values = by_hand(weights[i], weights[j])
                totals[example] += values.sum()
                counts[example] += len(values)
            mean = totals.sum() / counts.sum()
            assert group.divergences[i][j] == pytest.approx(mean, abs=1e-5)
            spread = ((totals - mean * counts) ** 2).sum() * n / (n - 1)
            assert group.errors[i][j] == pytest.approx(sqrt(spread) / counts.sum(), abs=1e-5)
    assert (group.queries, group.examples) == (counts.sum(), n)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_divergences_are_those_of_scipy_on_full_maps(family):
    model = build(family)
    anatomy = inspected(model)
    inputs = rows()
    (group,) = compared(model, anatomy, [as_batch(inputs)])
    assert model.config._attn_implementation == "sdpa"
    assert group.heads == anatomy.heads
    assert 0 < max(map(max, group.divergences[1:])) < log(2)
    check(group, full_maps(model, inputs))


def test_batches_add_up_and_rows_of_one_example_count_together():
    model = build("bert")
    anatomy = inspected(model)
    inputs = rows()
    parts = [
        as_batch(
            {name: value[part] for name, value in inputs.items()},
            example_of_row=[0, 0],
            start=index,
        )
        for index, part in enumerate((slice(0, 2), slice(2, 4)))
    ]
    (group,) = compared(model, anatomy, parts)
    assert group.heads == anatomy.heads
    check(group, full_maps(model, inputs), owner=[0, 0, 1, 1])


def test_a_pruned_model_compares_the_heads_that_are_left():
    model = build("llama")
    hp.prune(model, {"L1": [0, 1], "L2": [4, 5]})
    anatomy = hp.inspect(model)
    inputs = rows()
    (group,) = compared(model, anatomy, [as_batch(inputs)])
    assert len(group.heads) == 20
    check(group, full_maps(model, inputs))


def test_heads_that_look_elsewhere_are_not_compared():
    model = t5()
    anatomy = inspected(model)
    inputs = {**rows(), "decoder_input_ids": torch.randint(3, 20, (4, 6))}
    groups = compared(model, anatomy, [as_batch(inputs)])
    kinds = [{(head.site.stack, head.site.kind) for head in group.heads} for group in groups]
    assert sorted(kinds, key=str) == [
        {("decoder", "cross")},
        {("decoder", "self")},
        {("encoder", "self")},
    ]
    assert [
        group.queries for group in groups if ("encoder", "self") in kinds[groups.index(group)]
    ] == [33]
    assert sorted(group.queries for group in groups) == [24, 24, 33]


def test_of_a_long_row_a_share_of_queries_counts_evenly():
    model = build("gpt2", n_positions=256)
    anatomy = inspected(model)
    inputs = rows((150, 40), seed=3)
    (group,) = compared(model, anatomy, [as_batch(inputs)])
    assert group.queries == 64 + 40
    first = next(full_maps(model, inputs))
    chosen = sorted({-(-index * 150 // 64) for index in range(64)})
    totals = by_hand(first[1], first[0])[chosen].sum()
    second = list(full_maps(model, inputs))[1]
    totals += by_hand(second[1], second[0]).sum()
    assert group.divergences[1][0] == pytest.approx(totals / 104, abs=1e-5)


def test_one_example_has_no_interval():
    model = build("bert")
    (group,) = compared(model, inspected(model), [as_batch(rows((9,)))])
    assert {error for row in group.errors for error in row} == {None}


def test_the_map_is_what_classical_scaling_makes_of_points():
    points = np.random.default_rng(0).normal(size=(9, 2)) * (3, 1)
    places, explained = scaled(cdist(points, points) ** 2)
    assert explained == pytest.approx(1)
    assert cdist(places, places) == pytest.approx(cdist(points, points))
    assert np.var(places, axis=0)[0] > np.var(places, axis=0)[1]
    more = np.random.default_rng(0).normal(size=(9, 4))
    places, explained = scaled(cdist(more, more) ** 2)
    centred = more - more.mean(0)
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    assert explained == pytest.approx(squares[:2].sum() / squares.sum())


def test_clusters_are_those_that_points_were_drawn_in():
    draw = np.random.default_rng(1)
    points = np.concatenate(
        [draw.normal(size=(5, 2)) * 0.1 + at for at in ((0, 0), (5, 0), (0, 5))]
    )
    labels = clustered(cdist(points, points))
    assert [len({*labels[start : start + 5]}) for start in (0, 5, 10)] == [1, 1, 1]
    assert len({*labels}) == 3
    assert clustered(np.zeros((4, 4))) == (1, 1, 1, 1)


def test_every_removed_head_has_the_nearest_kept_one():
    model = build("bert")
    anatomy = inspected(model)
    groups = compared(model, anatomy, [as_batch(rows())])
    removed = [HeadId.parse(name) for name in ("L0.H0", "L1.H3", "L2.H5")]
    (group,) = groups
    for one in successors(groups, removed):
        others = {
            head: group.divergence(one.head, head)[0] for head in group.heads if head not in removed
        }
        assert one.nearest == min(others, key=others.get)
        assert one.divergence == min(others.values())
        assert one.low <= one.divergence <= one.high
        pairs = [value for row in group.divergences for value in row]
        assert one.closer_than == sum(value > one.divergence for value in pairs) / len(pairs)
    assert [one.head for one in successors(groups, removed)] == removed
    assert successors(groups, group.heads) == ()


def test_the_closest_pairs_come_first():
    model = build("bert")
    (group,) = compared(model, inspected(model), [as_batch(rows())])
    pairs = sorted(value for row in group.divergences for value in row)
    assert [one.divergence for one in closest([group])] == pairs[:10]
    assert all(one.head < one.nearest for one in closest([group]))
    assert closest([group], count=1)[0].closer_than == (len(pairs) - 1) / len(pairs)


def test_the_command_line_says_who_does_what_removed_heads_did(here, command_line):
    rows_of = ("--data", "d.csv")
    code, out, err = command_line(
        "prune", "m", *rows_of, "--keep", "0.7", "--dry-run", "--json", "--method", "magnitude"
    )
    assert code == 0, err
    (here / "plan.json").write_text(out)
    words = ("analyze", "m", *rows_of, "--role", "sink", "--similarity", "--plan", "plan.json")
    code, out, err = command_line(*words, "--run-dir", "r")
    assert code == 0, err
    assert "nearest kept" in out
    document = read_artefact(Similarity, here / "r" / "similarity.json")
    removed = json.loads((here / "plan.json").read_text())["remove"]
    assert [str(one.head) for one in document.successors] == removed
    assert not {str(one.nearest) for one in document.successors} & {*removed}
    assert document.data["n"] == document.groups[0].examples == 40
    plan = json.loads((here / "plan.json").read_text())
    del plan["sha256"]
    (here / "other.json").write_text(json.dumps({**plan, "remove": ["L7.H0"]}))
    code, _out, err = command_line(*words[:-1], "other.json")
    assert (code, "no head L7.H0" in err) == (2, True), err
    code, _out, err = command_line("analyze", "m", *rows_of, "--plan", "plan.json")
    assert (code, "--plan has no effect here" in err) == (2, True), err
