"""Swap search: heads change places where the losses of both cuts say so, and no constraint is broken."""

import pytest
import torch
from families import build, inspected
from hypothesis import assume, given, settings
from scipy.stats import t
from test_scoring import setting
from test_selection import posed, problems

import headprune as hp
from headprune.batch import as_batches
from headprune.config import Recipe
from headprune.errors import ConfigError, PlanError
from headprune.heads import HeadId
from headprune.journal import Journal
from headprune.passes import RunContext
from headprune.planning import Constraints, Half, Swapped, make_plan, swap
from headprune.planning.swaps import pairs_near_the_cut
from headprune.workflows.course import check_course


@given(problems())
@settings(max_examples=150, deadline=None)
def test_whatever_is_swapped_the_plan_stays_lawful(problem):
    anatomy, scores, constraints = posed(problem)
    try:
        plan = make_plan(scores, anatomy, constraints=constraints)
    except PlanError:
        assume(False)
    values = scores.importance()
    for pair in pairs_near_the_cut(plan.remove, anatomy, values, constraints=constraints):
        gone = pair.applied(plan.remove)
        assert len(gone) == len(plan.remove)
        assert set(pair.stays) <= set(plan.remove)
        assert not set(pair.goes) & set(plan.remove)
        assert not {str(head) for head in gone} & set(constraints.protect)
        for site, kept in anatomy.kept_per_site(gone).items():
            (there,) = (one for one in anatomy.sites if one.id == site)
            if len(kept) < len(there.heads):
                assert len(kept) >= max(constraints.min_heads, there.min_heads)
                if constraints.gqa != "pad" and there.group_size > 1:
                    assert there.is_lawful(kept)


def test_all_pairs_are_tried_that_are_wide_enough():
    anatomy = inspected(build("bert"))
    values = {head: float(place) for place, head in enumerate(anatomy.heads)}
    gone = anatomy.heads[3:6]
    pairs = pairs_near_the_cut(gone, anatomy, values, constraints=Constraints(keep=0.8), width=2)
    goes, stays = ({str(getattr(pair, side)[0]) for pair in pairs} for side in ("goes", "stays"))
    assert (goes, stays) == ({"L0.H0", "L0.H1"}, {"L0.H4", "L0.H5"})
    assert len(pairs) == 4
    uniform = Constraints(keep=0.8, uniform=True)
    wide = pairs_near_the_cut(gone, anatomy, values, constraints=uniform, width=99)
    assert len(wide) == 3 * 3
    assert all(pair.goes[0].site == pair.stays[0].site for pair in wide)


@pytest.fixture(scope="module")
def case():
    """Return a model with its anatomy, two halves of rows and a loss; labels are what the model itself says, mostly."""
    model, batch, loss = setting("bert", rows=256)
    with torch.no_grad():
        said = model(**{name: value for name, value in batch.items() if name != "labels"})
    batch["labels"] = said.logits.argmax(-1)
    parts = [{name: value[start::4] for name, value in batch.items()} for start in range(4)]
    return model, inspected(model), (half(parts[:2], "first"), half(parts[2:], "second")), loss


def half(parts, name):
    few = {key: value[:16] for key, value in parts[0].items()}
    return Half(as_batches([few]), as_batches(parts), name)


def values_of(anatomy, seed=0):
    drawn = torch.rand(len(anatomy.heads), generator=torch.Generator().manual_seed(seed))
    return dict(zip(anatomy.heads, drawn.tolist(), strict=True))


def three_of_each_layer(anatomy, seed):
    generator = torch.Generator().manual_seed(seed)
    places = [torch.randperm(6, generator=generator)[:3].tolist() for _ in anatomy.sites]
    return frozenset(
        HeadId(site.id, head)
        for site, heads in zip(anatomy.sites, places, strict=True)
        for head in heads
    )


def by_hand(model, anatomy, batches, loss, gone):
    """Return the loss of every example without some heads, in plain forwards."""
    found = []
    with torch.no_grad(), hp.masked(model, tuple(gone), anatomy=anatomy):
        for batch in batches:
            found.append(loss(model(**batch.inputs), batch).double())
    return torch.cat(found)


def search_by_hand(case, gone, values, constraints, most):
    model, anatomy, (proposing, confirming), loss = case
    swaps, in_vain = [], 0
    while in_vain < 2 and len(swaps) < most:
        pairs = pairs_near_the_cut(gone, anatomy, values, constraints=constraints)
        few = [by_hand(model, anatomy, proposing.few, loss, p.applied(gone)).mean() for p in pairs]
        pairs = [pairs[place] for place in torch.stack(few).argsort().tolist()[:8]]
        rows = proposing.batches
        before = by_hand(model, anatomy, rows, loss, gone).mean()
        means = [by_hand(model, anatomy, rows, loss, p.applied(gone)).mean() for p in pairs]
        best = pairs[int(torch.stack(means).argmin())]
        there = by_hand(model, anatomy, confirming.batches, loss, gone)
        gains = there - by_hand(model, anatomy, confirming.batches, loss, best.applied(gone))
        error = gains.std() / len(gains) ** 0.5
        in_vain += 1
        if min(means) < before and gains.mean() > t.ppf(0.95, len(gains) - 1) * error:
            swaps.append((best, float(gains.mean()), float(error), len(gains)))
            gone, in_vain = best.applied(gone), 0
        proposing, confirming = confirming, proposing
    return swaps


@pytest.mark.parametrize(("uniform", "seed"), [(False, 1), (True, 2)])
def test_swaps_are_those_of_a_search_by_hand(case, uniform, seed):
    model, anatomy, halves, loss = case
    limits = Constraints(keep=0.5, uniform=uniform)
    values, gone = values_of(anatomy), three_of_each_layer(anatomy, seed)
    found = swap(
        model,
        anatomy,
        gone,
        halves=halves,
        loss=loss,
        values=values,
        constraints=limits,
        most=3,
    )
    wanted = search_by_hand(case, gone, values, limits, 3)
    assert len(wanted) > 0
    assert [one.pair for one in found.swaps] == [pair for pair, *_ in wanted]
    for one, (pair, gain, error, n) in zip(found.swaps, wanted, strict=True):
        assert (one.gain, one.standard_error) == pytest.approx((gain, error), rel=1e-3, abs=1e-6)
        assert one.n == n
        gone = pair.applied(gone)
    assert found.gone == gone


def test_what_gains_nothing_is_not_swapped(case):
    """Losses that heads have no say in, and a model whose dearest heads stay already."""
    model, anatomy, halves, loss = case
    limits = Constraints(keep=0.9)
    settings = {"halves": halves, "values": values_of(anatomy), "constraints": limits, "most": 5}
    found = swap(
        model, anatomy, anatomy.heads[:2], loss=lambda _o, b: b.targets.float(), **settings
    )
    assert found == Swapped(frozenset(anatomy.heads[:2]), ())
    assert swap(model, anatomy, (), loss=loss, **settings) == Swapped(frozenset(), ())


def test_a_search_goes_on_from_what_is_kept(case, tmp_path):
    model, anatomy, halves, loss = case
    settings = {
        "halves": halves,
        "values": values_of(anatomy),
        "constraints": Constraints(keep=0.5),
    }

    def search(most, journal):
        forwards = []
        hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
        context = RunContext(journal=journal)
        found = swap(
            model, anatomy, anatomy.heads[::2], loss=loss, most=most, context=context, **settings
        )
        hook.remove()
        return found, len(forwards)

    whole, all_forwards = search(3, None)
    search(1, Journal(tmp_path))
    again, forwards = search(3, Journal(tmp_path))
    assert again == whole
    assert forwards < all_forwards


@pytest.mark.parametrize(
    "said",
    [
        {"keep": 0.5},
        {"keep": 0.5, "reconstruct": "best"},
        {"reconstruct": "none", "max_drop": "1%"},
    ],
)
def test_swaps_are_for_one_cut_that_is_not_reconstructed(said):
    with pytest.raises(ConfigError, match="swaps are judged by heads as they are"):
        check_course(Recipe(swaps=2, method="gradient", steps=1, **said))
