"""Plans are values that a user edits and prints."""

from dataclasses import replace

import pytest
from test_plan import anatomy_of, scores_of

import headprune as hp
from headprune.config import Constraints
from headprune.errors import PlanError
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores, PruningPlan


def plan_of(anatomy, **settings):
    scores = scores_of(anatomy, [float(i * 7 % 12) for i in range(len(anatomy.heads))])
    return hp.plan(scores, Constraints(**settings), anatomy=anatomy)


def test_heads_are_kept_after_all_and_removed_too():
    anatomy = anatomy_of()
    plan = plan_of(anatomy, keep=0.75)
    kept = plan.without(plan.remove[0])
    assert set(kept.remove) == set(plan.remove[1:])
    assert kept.budget["heads_after"] == plan.budget["heads_after"] + 1
    assert sum(kept.kept_per_site.values()) == kept.budget["heads_after"]
    assert kept.reasons[str(plan.remove[0])] == "kept: by hand"
    again = kept.with_removed(str(plan.remove[0]))
    assert (again.remove, again.kept_per_site) == (plan.remove, plan.kept_per_site)
    assert PruningPlan.model_validate_json(again.to_json()) == again


@pytest.mark.parametrize(
    ("settings", "edit", "heads", "words"),
    [
        ({"keep": 0.75}, "without", ["L9.H0"], "no head L9.H0"),
        ({"keep": 1.0}, "without", ["L0.H0"], "doesn't remove L0.H0"),
        ({"keep": 0.75, "protect": ("L0.H1", "L2")}, "with_removed", ["L0.H1"], "L0.H1 is protected"),
        ({"keep": 0.75, "protect": ("L2",)}, "with_removed", ["L2.H1"], "L2.H1 is protected"),
        ({"keep": 1.0, "min_heads": 4}, "with_removed", ["L0.H0"], "at least 4 must be kept"),
        ({"keep": 1.0, "uniform": True}, "with_removed", ["L0.H0"], "the plan is uniform"),
        ({"keep": 1.0, "multiple_of": 2}, "with_removed", ["L0.H0"], "in multiples of 2"),
    ],
)  # fmt: skip
def test_an_edit_that_breaks_a_constraint_is_refused(settings, edit, heads, words):
    plan = plan_of(anatomy_of(), **settings)
    with pytest.raises(PlanError, match=words):
        getattr(plan, edit)(*heads)


@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("execution", ["native", "zero_padded"])
@pytest.mark.parametrize("gqa", ["group", "pad"])
def test_an_edit_is_lawful_where_the_architecture_says_so(shape, execution, gqa):
    """One head of one layer, which a group may not miss."""
    anatomy = anatomy_of(heads=shape[0], groups=shape[1])
    anatomy = replace(
        anatomy, sites=tuple(replace(site, execution=execution) for site in anatomy.sites)
    )
    plan = plan_of(anatomy, keep=1.0, gqa=gqa)
    site = anatomy.sites[0]
    kept = site.after((1, 2, 3), pad=gqa == "pad").slots
    if site.is_lawful(kept):
        assert plan.with_removed("L0.H0").remove == (anatomy.heads[0],)
    else:
        with pytest.raises(PlanError, match="groups of 2 that share keys and values"):
            plan.with_removed("L0.H0")


def test_a_head_that_is_removed_already_is_named():
    plan = plan_of(anatomy_of(), keep=0.75)
    with pytest.raises(PlanError, match="is removed already"):
        plan.with_removed(plan.remove[0])


def test_a_plan_of_an_older_file_says_that_it_must_be_made_again():
    plan = PruningPlan(remove=("L0.H0",), kept_per_site={"L0": 3})
    with pytest.raises(PlanError, match="which heads its model has"):
        plan.without("L0.H0")


def test_what_is_printed_is_a_few_lines_and_says_what_matters():
    anatomy = anatomy_of()
    scores = scores_of(anatomy, [float(i) for i in range(12)])
    plan = plan_of(anatomy, keep=0.75)
    assert str(scores).splitlines() == [
        "x scores of 12 heads in 3 layers, n = 1",
        "  most important:  L2.H3 11, L2.H2 10, L2.H1 9, L2.H0 8",
        "  least important: L0.H0 0, L0.H1 1, L0.H2 2, L0.H3 3",
    ]
    assert str(plan).splitlines() == [
        "removes 3 of 12 heads (keep=0.75)",
        "  kept: 2 in L0, 3 in L1, 4 in L2",
        "  removed: L0.H0, L0.H2, L1.H3",
    ]
    assert str(anatomy).splitlines() == [
        "toy: 12 heads in 3 attentions",
        "  L0 to L2: 4 heads of 8",
    ]
    for value in (scores, plan, anatomy):
        assert len(repr(value)) < 80
        assert len(str(value).splitlines()) < 8
        html = value._repr_html_()
        assert html.count("<td") == 12
        assert "<script" not in html


def test_large_values_print_in_a_few_lines_too():
    anatomy = anatomy_of(layers=40, heads=32, groups=8)
    scores = scores_of(anatomy, [float(i * 7 % 1280) for i in range(1280)])
    plan = hp.plan(scores, Constraints(keep=0.5), anatomy=anatomy)
    for value in (scores, plan, anatomy):
        assert len(str(value)) < 1000
    assert "and 628 more" in str(plan)


def test_names_are_escaped_in_notebooks():
    head = HeadId(SiteId("", 0), 0)
    scores = HeadScores(method="<b>", heads=(head,), values=(1.0,), n=1, seed=0)
    assert "<b>" not in scores._repr_html_()
