"""Racing: what is sure is right, rows go where the cut is open, and the work stays within its bound."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from families import build, inspected, token_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import cross_entropy

import headprune as hp
from headprune.batch import Batch
from headprune.errors import DataError, ModelError
from headprune.scoring.racing import (
    RaceResult,
    decide,
    mask_costs,
    planned_rounds,
    race,
    race_heads,
)

COSTS = np.repeat([3.67, 2.67, 1.67, 0.67], 6)
KEPT = 16


def simulated(seed, *, heads=24, rows=512, gap=1.0):
    """Return true means, some of them close to each other, and differences around them: skewed, and shared in part."""
    draw = np.random.default_rng(seed)
    means = gap * draw.normal(size=heads) ** 3
    shared = draw.laplace(size=rows) * draw.uniform(0.2, 1, size=(heads, 1))
    own = draw.laplace(size=(heads, rows)) + draw.exponential(size=(heads, rows)) - 1
    return means, means[:, None] + shared + own


def raced(differences, *, kept=KEPT, costs=COSTS, asked=None, **others):
    """Race on a matrix, noting what was asked for."""

    def measure(heads, rows):
        if asked is not None:
            asked.append((heads, rows))
        return differences[np.ix_(heads, rows)]

    return race(measure, num_rows=differences.shape[1], kept=kept, costs=costs, **others)


def best(means, kept):
    found = np.zeros(len(means), dtype=bool)
    found[np.argsort(means)[len(means) - kept :]] = True
    return found


def is_wrong(found, means):
    truth = best(means, found.kept)
    return bool((found.stays & ~truth).any() or (found.goes & truth).any())


def test_hardly_any_race_decides_a_head_wrongly():
    most = stats.binom.ppf(0.999, 200, 0.05)
    share = KEPT * (24 - KEPT) * len(planned_rounds(512))
    wrong, careless, decided = 0, 0, []
    for seed in range(200):
        means, differences = simulated(seed)
        found = raced(differences, seed=seed)
        wrong += is_wrong(found, means)
        decided.append(1 - found.undecided.mean())
        # The same without Bonferroni: the simulation is hard enough to show it.
        careless += is_wrong(raced(differences, seed=seed, error_probability=0.05 * share), means)
    assert wrong <= most < careless
    assert np.mean(decided) > 0.3


def test_where_heads_differ_most_are_decided_with_less_work():
    found = [raced(simulated(seed, gap=5)[1], seed=seed, max_work=1.0) for seed in range(30)]
    assert np.mean([1 - one.undecided.mean() for one in found]) > 0.75
    assert np.mean([one.work for one in found]) < 0.4


def test_the_error_probability_is_used():
    """Two heads that hardly differ: the bound is nearly reached, and not exceeded."""
    wrong = 0
    for seed in range(600):
        draw = np.random.default_rng(seed)
        differences = draw.normal(size=(2, 512)) + np.array([[0], [1e-9]])
        found = raced(
            differences, kept=1, costs=np.ones(2), error_probability=0.2, max_work=1.0, seed=seed
        )
        wrong += bool(found.stays[0])
    assert stats.binom.ppf(0.001, 600, 0.08) <= wrong <= stats.binom.ppf(0.999, 600, 0.2)


def test_a_race_agrees_with_full_ablation_more_than_a_third_of_the_rows_does():
    ours, plain = [], []
    for seed in range(40):
        _, differences = simulated(seed, rows=1024)
        full = set(np.argsort(differences.mean(1))[: 24 - KEPT].tolist())
        fewer = set(np.argsort(differences[:, :341].mean(1))[: 24 - KEPT].tolist())
        ours.append(len(full & set(raced(differences, seed=seed).removed)))
        plain.append(len(full & fewer))
    assert sum(ours) > sum(plain)


@pytest.mark.parametrize("gap", [0.05, 0.3])
def test_with_all_the_work_undecided_heads_have_full_ablation_s_means(gap):
    _, differences = simulated(3, gap=gap)
    found = raced(differences, max_work=1.0)
    opened = found.undecided
    assert opened.sum() >= 2
    assert (found.rows_spent[opened] == 512).all()
    full = differences[opened].mean(1)
    error = differences[opened].std(1, ddof=1) / 512**0.5
    np.testing.assert_allclose(found.means[opened], full, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.values[opened], full, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.standard_errors[opened], error, rtol=1e-12)


@pytest.mark.parametrize("max_work", [0.05, 0.1, 1 / 3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("rows", [320, 333, 2000])
def test_the_work_stays_within_its_bound_and_is_what_was_run(max_work, rows):
    for seed in range(5):
        _, differences = simulated(seed, rows=rows, gap=[0.1, 2][seed % 2])
        asked = []
        found = raced(differences, asked=asked, max_work=max_work, seed=seed)
        cost = sum(COSTS[heads].sum() * len(places) for heads, places in asked)
        assert found.work == pytest.approx(cost / (COSTS.sum() * rows))
        assert found.work <= max_work + 1e-9
        assert all(len(places) >= 16 for _, places in asked)
        assert found.rounds == tuple(np.cumsum([len(places) for _, places in asked]))
        used = [place for _, places in asked for place in places]
        assert len(set(used)) == len(used)
        if (
            found.undecided.any() and found.rounds[-1] < rows
        ):  # it ended because a row more was too much
            more = COSTS[found.undecided].sum()
            assert found.work + 16 * more / (COSTS.sum() * rows) > max_work or (
                found.rounds[-1] not in planned_rounds(rows)
            )


def brute_force(runs, kept, level):
    """Decide from pairs one by one, each on the rows that both heads have; heads leave until none does."""

    def better(one, other):
        rows = min(len(runs[one]), len(runs[other]))
        gap = runs[one][:rows] - runs[other][:rows]
        error = gap.std(ddof=1) / rows**0.5
        return gap.mean() > stats.t.isf(level, rows - 1) * error

    stays, goes, left = set(), set(), set(range(len(runs)))
    while True:
        places = kept - len(stays)
        more, less = set(), set()
        for head in left:
            worse = sum(better(head, other) for other in left - {head})
            above = sum(better(other, head) for other in left - {head})
            if worse >= len(left) - places:
                more.add(head)
            if above >= places:
                less.add(head)
        if not more | less:
            return stays, goes
        stays, goes, left = stays | more, goes | less, left - more - less


def members(flags):
    return set(np.flatnonzero(flags).tolist())


def test_decisions_are_those_of_a_loop_over_pairs():
    seen = set()
    for seed in range(60):
        draw = np.random.default_rng(seed)
        heads, rows = int(draw.integers(2, 11)), int(draw.integers(16, 60))
        kept, level = int(draw.integers(0, heads + 1)), float(10 ** -draw.uniform(1, 5))
        _, differences = simulated(seed, heads=heads, rows=rows, gap=3 * draw.random())
        stays, goes = decide(differences, kept=kept, level=level)
        assert (members(stays), members(goes)) == brute_force(list(differences), kept, level)
        assert not (stays & goes).any()
        seen.add((bool(stays.any()), bool(goes.any()), bool((stays | goes).all())))
    assert len(seen) >= 5


def test_comparing_with_heads_that_left_on_common_rows_decides_no_more():
    lengths = set()
    for seed in range(8):
        _, differences = simulated(seed, heads=12, gap=0.5)
        found = raced(differences, kept=7, costs=np.ones(12), max_work=1.0, seed=seed)
        order = np.random.default_rng(seed).permutation(512)
        runs = [row[order[:n]] for row, n in zip(differences, found.rows_spent, strict=True)]
        level = 0.05 / (7 * 5 * len(planned_rounds(512)))
        assert (members(found.stays), members(found.goes)) == brute_force(runs, 7, level)
        lengths.add(len(set(found.rows_spent.tolist())))
    assert max(lengths) >= 3


@pytest.mark.parametrize("offset", [0, 1e-13])
def test_heads_that_do_the_same_are_not_told_apart(offset):
    _, differences = simulated(0, heads=9)
    differences += 5 * np.arange(9)[:, None]
    differences[4] = differences[3] + offset  # the cut lies between them
    for rows in (32, 512):
        stays, goes = decide(differences[:, :rows], kept=5, level=1e-4)
        assert members(~(stays | goes)) == {3, 4}
    found = raced(differences, kept=5, costs=np.ones(9), max_work=1.0)
    assert members(found.undecided) == {3, 4}
    assert (found.rows_spent[[3, 4]] == 512).all()
    assert found.rows_spent[[0, 8]].max() < 512


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from(["stays", "goes", "open"])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=300, deadline=None)
def test_sorting_by_value_takes_what_surely_goes_before_the_undecided_before_what_surely_stays(
    heads,
):
    means = np.array([mean / 7 for mean, _ in heads])
    stays, goes = (np.array([fate == name for _, fate in heads]) for name in ("stays", "goes"))
    spent = np.full(len(heads), 32)
    free = len(heads) - int(stays.sum()) - int(goes.sum())
    for kept in (int(stays.sum()), int(stays.sum()) + free):
        found = RaceResult(means, means, spent, stays, goes, kept, 0.1, (32,))
        values = found.values
        assert len(found.removed) == len(heads) - kept
        assert members(goes) <= set(found.removed) <= members(~stays)
        opened = found.undecided
        assert (values[opened] == means[opened]).all()
        tiers = [group for group in (values[goes], values[opened], values[stays]) if len(group)]
        assert all(low.max() < high.min() for low, high in pairwise(tiers))
        # Nothing moves where nothing contradicts.
        raw = [group for group in (means[goes], means[opened], means[stays]) if len(group)]
        if all(low.max() < high.min() for low, high in pairwise(raw)):
            assert (values == means).all()


@given(st.integers(1, 20_000))
def test_rounds_double_until_all_rows_are_run(rows):
    totals = planned_rounds(rows)
    assert totals[-1] == rows
    assert totals[0] == min(rows, max(32, -(-rows // 16))) or rows < 48
    for before, after in pairwise(totals):
        assert after == 2 * before or (after == rows and 1.5 * before <= after <= 3 * before)


def test_too_few_rows_are_an_error_of_ours():
    _, differences = simulated(0, rows=47)
    with pytest.raises(DataError, match="too few"):
        raced(differences)
    assert raced(differences, max_work=0.5).rounds == (23,)
    with pytest.raises(DataError, match="too few"):
        raced(differences[:, :15], max_work=1.0)


def test_the_order_of_rows_is_the_seed_s():
    _, differences = simulated(0)
    first, again, other = (raced(differences, seed=seed, max_work=0.1) for seed in (1, 1, 2))
    assert (first.means == again.means).all()
    assert (first.means != other.means).any()


def test_where_all_heads_stay_one_round_is_enough():
    _, differences = simulated(0)
    found = raced(differences, kept=24)
    assert found.stays.all()
    assert found.rounds == (32,)
    assert found.removed == ()


ROWS = 64


def classifier_loss(outputs, batch):
    return cross_entropy(outputs.logits, batch.targets, reduction="none")


def batches_of(rows):
    """Return batches of some examples: the shortest first, as the tasks do, and three of them at least."""
    inputs = token_inputs(rows=ROWS)
    lengths = inputs["attention_mask"].sum(1)[list(rows)]
    places = lengths.argsort()
    return [
        Batch(
            {name: value[list(rows)][part] for name, value in inputs.items()},
            torch.tensor(rows)[part] % 2,
            torch.arange(len(part)),
            part,
        )
        for part in places.tensor_split(3)
    ]


def test_a_raced_model_has_the_means_of_the_rows_that_were_spent(bert):
    anatomy = inspected(bert)
    found = race_heads(
        bert,
        anatomy,
        batches_of=batches_of,
        num_rows=ROWS,
        loss=classifier_loss,
        keep=0.05,
        error_probability=0.9,
        max_work=1.0,
        seed=5,
    )
    order = np.random.default_rng(5).permutation(ROWS).tolist()
    assert found.kept == 1
    assert set(found.rows_spent.tolist()) == {32, ROWS}
    assert 0.5 < found.work < 1
    inputs, targets = token_inputs(rows=ROWS), torch.arange(ROWS) % 2

    def losses_of(removed):
        with torch.no_grad(), hp.masked(bert, removed, anatomy=anatomy):
            return cross_entropy(bert(**inputs).logits, targets, reduction="none").double()

    base = losses_of([])
    for place, head in enumerate(anatomy.heads):
        rows = order[: found.rows_spent[place]]
        expected = (losses_of([head]) - base)[rows]
        assert found.means[place] == pytest.approx(expected.mean().item(), abs=1e-5)
        error = (expected.std() / len(rows) ** 0.5).item()
        assert found.standard_errors[place] == pytest.approx(error, abs=1e-5)
    estimate = found.estimate()
    assert estimate.n == ROWS
    assert estimate.values.tolist() == found.values.tolist()


def test_masks_of_early_heads_cost_more(bert):
    anatomy = inspected(bert)
    assert mask_costs(anatomy).tolist() == pytest.approx([2.67] * 6 + [1.67] * 6 + [0.67] * 6)
    hp.prune(bert, ["L0.H1", "L2.H0"])
    assert mask_costs(inspected(bert)).tolist() == pytest.approx(
        [2.67] * 5 + [1.67] * 6 + [0.67] * 5
    )


def test_a_loss_that_is_not_a_number_is_an_error_of_ours():
    model = build("bert")
    with pytest.raises(ModelError, match="not a number"):
        race_heads(
            model,
            inspected(model),
            batches_of=batches_of,
            num_rows=ROWS,
            loss=lambda outputs, _batch: outputs.logits[:, 0] / 0,
            keep=0.5,
        )
