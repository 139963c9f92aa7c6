"""Heads of an attention that lose the least together."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from families import build, inspected
from hypothesis import given
from test_methods import moves
from test_scoring import setting

import headprune as hp
from headprune.config import PRESETS, Constraints, Settings, load_settings
from headprune.errors import ConfigError, PlanError
from headprune.heads import HeadId
from headprune.planning.plan import make_plan
from headprune.planning.solve import rearranged


@pytest.fixture(scope="module")
def anatomy():
    return inspected(build("bert"))


def products_from(seed, anatomy, samples=5, diagonal=False):
    rng = np.random.default_rng(seed)
    found = {}
    for site in anatomy.sites:
        vectors = rng.normal(size=(samples, len(site.heads)))
        fisher = vectors.T @ vectors / samples
        found[str(site.id)] = (np.diag(np.diag(fisher)) if diagonal else fisher).tolist()
    return found


def lost(gone, site, fisher):
    places = [head.head for head in gone if head.site == site.id]
    return np.array(fisher)[np.ix_(places, places)].sum()


def cheapest(site, fisher, count):
    order = np.argsort(np.diag(fisher), kind="stable")[:count]
    return frozenset(HeadId(site.id, int(head)) for head in order)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 6))
def test_together_they_never_lose_more_than_the_cheapest_ones(anatomy, seed, count):
    products = products_from(seed, anatomy)
    gone = frozenset().union(
        *(cheapest(site, products[str(site.id)], count) for site in anatomy.sites)
    )
    found = rearranged(gone, anatomy, products, protected=())
    for site in anatomy.sites:
        fisher = products[str(site.id)]
        assert sum(head.site == site.id for head in found) == count
        assert lost(found, site, fisher) <= lost(gone, site, fisher) + 1e-9


@given(seed=st.integers(0, 10_000), count=st.integers(0, 6))
def test_heads_that_have_nothing_to_do_with_each_other_go_by_their_scores(anatomy, seed, count):
    products = products_from(seed, anatomy, diagonal=True)
    gone = frozenset().union(
        *(cheapest(site, products[str(site.id)], count) for site in anatomy.sites)
    )
    assert rearranged(gone, anatomy, products, protected=()) == gone


def test_a_pair_that_makes_up_for_each_other_goes_before_the_two_cheapest(anatomy):
    """Brute force over all pairs of one attention."""
    site = anatomy.sites[0]
    vectors = np.array([[1.0, -1.0, 0.9, 0.8, 1.2, 1.3], [0.1, -0.1, 0.3, 0.8, 0.7, 0.2]])
    fisher = (vectors.T @ vectors).tolist()
    flat = {str(other.id): np.eye(6).tolist() for other in anatomy.sites[1:]}
    gone = cheapest(site, fisher, 2)
    found = rearranged(gone, anatomy, {str(site.id): fisher, **flat}, protected=())
    pairs = combinations((HeadId(site.id, head) for head in site.heads), 2)
    best = min(pairs, key=lambda pair: lost(pair, site, fisher))
    assert found == frozenset(best) != gone


def test_protected_heads_stay(anatomy):
    products = products_from(1, anatomy)
    site = anatomy.sites[0]
    protected = {HeadId(site.id, 0), HeadId(site.id, 3)}
    gone = frozenset(HeadId(site.id, head) for head in (1, 2, 4))
    assert not protected & rearranged(gone, anatomy, products, protected=protected)


@pytest.mark.parametrize("method", ["fisher", "fisher:batch"])
def test_products_are_those_of_the_derivatives(method):
    model, batch, loss = setting("bert")
    found = moves(model, batch, loss)
    found = found if method == "fisher" else found.mean(0, keepdim=True)
    scores = hp.score(model, [batch], loss=loss, method=method)
    assert set(scores.products) == {"L0", "L1", "L2"}
    for place, name in enumerate(("L0", "L1", "L2")):
        own = found[:, 6 * place : 6 * place + 6]
        expected = own.T @ own / len(own)
        error = (torch.tensor(scores.products[name]) - expected).abs().max()
        assert error < 1e-5 * expected.abs().max()
    again = type(scores).model_validate_json(scores.model_dump_json())
    assert again == scores


def test_scores_that_do_not_say_it_are_refused(anatomy):
    model, batch, loss = setting("bert")
    scores = hp.score(model, [batch], loss=loss, method="gradient")
    with pytest.raises(PlanError, match="what heads lose together"):
        make_plan(scores, anatomy, constraints=Constraints(keep=0.5, rearrange=True))
    fisher = hp.score(model, [batch], loss=loss, method="fisher")
    plan = make_plan(fisher, anatomy, constraints=Constraints(keep=0.5, rearrange=True))
    plain = make_plan(fisher, anatomy, constraints=Constraints(keep=0.5))
    assert plan.kept_per_site == plain.kept_per_site
    assert plan.constraints["rearrange"] is True


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_recipes_of_others_fill_in_what_was_not_said(name, tmp_path):
    (tmp_path / "headprune.yaml").write_text("model: m\nsteps: 7\nreconstruct: refit\n")
    settings, _origin = load_settings({"recipe": name, "reconstruct": "none"}, folder=tmp_path)
    assert settings.score.steps == 1
    assert settings.reconstruct.reconstruct == "none"
    assert settings.score.method == PRESETS[name]["method"]
    assert Settings.of(recipe=name, steps=2).score.steps == 2


def test_a_recipe_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`recipe` can't be 'kwan'"):
        load_settings({"recipe": "kwan", "model": "m"}, folder=tmp_path)
