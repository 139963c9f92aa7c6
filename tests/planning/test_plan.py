"""Plans: pure, lawful, and the best there is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headprune.anatomy.sites import Anatomy, Site
from headprune.config import Constraints
from headprune.errors import ConfigError, PlanError
from headprune.heads import HeadId, SiteId
from headprune.planning.plan import make_plan
from headprune.planning.problem import check_constraints
from headprune.plans import HeadScores


def anatomy_of(*, layers=3, heads=4, groups=4, min_heads=0, stacks=(("", "self"),)):
    sites = tuple(
        Site(
            id=SiteId(stack, layer, kind),
            path=f"{stack}.layers.{layer}.{kind}",
            output=f"{stack}.layers.{layer}.{kind}.o",
            gate=f"{stack}.layers.{layer}.{kind}.o",
            num_heads=heads,
            num_key_value_heads=groups,
            head_dim=8,
            heads=tuple(range(heads)),
            slices=(),
            attributes=(),
            when_empty=None if min_heads else "native",
        )
        for stack, kind in stacks
        for layer in range(layers)
    )
    return Anatomy("toy", sites, {})


def scores_of(anatomy, values):
    return HeadScores(method="x", heads=anatomy.heads, values=values, n=1, seed=0)


shapes = st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3), (6, 2)])


@st.composite
def problems(draw):
    """Plain numbers only: beartype draws random ones when our functions run, which hypothesis forbids in here."""
    heads, groups = draw(shapes)
    layers = draw(st.integers(1, 3))
    total = layers * heads
    names = [f"L{layer}.H{head}" for layer in range(layers) for head in range(heads)]
    return (
        {"layers": layers, "heads": heads, "groups": groups, "min_heads": draw(st.integers(0, 1))},
        draw(st.lists(st.integers(0, 9).map(float), min_size=total, max_size=total)),
        {
            "keep": draw(st.sampled_from([0.01, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0])),
            "min_heads": draw(st.integers(0, 2)),
            "protect": tuple(draw(st.lists(st.sampled_from(names), max_size=2))),
            "gqa": draw(st.sampled_from(["group", "even", "pad"])),
        },
    )


def posed(problem):
    shape, values, constraints = problem
    anatomy = anatomy_of(**shape)
    return anatomy, scores_of(anatomy, values), Constraints(**constraints)


@given(problems())
@settings(max_examples=400, deadline=None)
def test_a_plan_is_lawful_and_within_its_constraints_or_refused(problem):
    anatomy, scores, constraints = posed(problem)
    try:
        plan = make_plan(scores, anatomy, constraints=constraints)
    except PlanError:
        return
    kept = anatomy.kept_per_site(set(plan.remove))
    for site in anatomy.sites:
        slots = site.padded(kept[site.id]) if constraints.gqa == "pad" else kept[site.id]
        assert site.is_lawful(slots)
        assert set(kept[site.id]) <= set(slots) <= set(site.heads)
        assert len(kept[site.id]) >= min(constraints.min_heads, len(site.heads))
        assert plan.kept_per_site[str(site.id)] == len(kept[site.id])
    assert not {str(head) for head in plan.remove} & set(constraints.protect)
    assert plan.budget["heads_after"] == len(anatomy.heads) - len(plan.remove)
    assert plan.budget["heads_after"] >= plan.budget["heads_wanted"]


@given(problems())
@settings(max_examples=100, deadline=None)
def test_what_the_check_allows_the_plan_can_do(problem):
    anatomy, scores, constraints = posed(problem)
    try:
        target = check_constraints(anatomy, constraints).heads_to_keep
    except PlanError:
        with pytest.raises(PlanError):
            make_plan(scores, anatomy, constraints=constraints)
        return
    try:
        plan = make_plan(scores, anatomy, constraints=constraints)
    except PlanError as error:
        assert "removes no head" in error.what
        return
    assert plan.budget["heads_wanted"] == target


@given(
    st.lists(st.integers(0, 9).map(float), min_size=8, max_size=8),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.sampled_from(["group", "even", "pad"]),
    st.sampled_from([(4, 4), (4, 2)]),
)
@settings(max_examples=100, deadline=None)
def test_no_lawful_plan_of_the_same_size_loses_less(values, keep, gqa, shape):
    anatomy = anatomy_of(layers=2, heads=shape[0], groups=shape[1])
    scores = scores_of(anatomy, values)
    constraints = Constraints(keep=keep, min_heads=0, gqa=gqa)
    plan = make_plan(scores, anatomy, constraints=constraints)
    by_head = scores.by_head()
    cost = sum(by_head[head] for head in plan.remove)

    def allowed(removed):
        kept = anatomy.kept_per_site(removed)
        for site in anatomy.sites:
            sizes = [len(members) for members in site.groups(kept[site.id]).values()]
            if site.group_size == 1 or gqa == "pad":
                continue
            if gqa == "group" and any(size != site.group_size for size in sizes):
                return False
            if gqa == "even" and len(sizes) not in (0, site.num_key_value_heads):
                return False
            if not site.is_lawful(kept[site.id]):
                return False
        return True

    best = min(
        sum(by_head[head] for head in removed)
        for removed in itertools.combinations(anatomy.heads, len(plan.remove))
        if allowed(set(removed))
    )
    assert cost == pytest.approx(best)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_shares_are_refused(keep):
    with pytest.raises(ConfigError, match="`keep` can't be"):
        Constraints(keep=keep)


def test_keep_all_and_keep_least():
    anatomy = anatomy_of()
    scores = scores_of(anatomy, [float(i) for i in range(12)])
    assert make_plan(scores, anatomy, constraints=Constraints(keep=1.0)).remove == ()
    least = make_plan(scores, anatomy, constraints=Constraints(keep=0.25, min_heads=1))
    assert least.kept_per_site == {"L0": 1, "L1": 1, "L2": 1}
    # The best head of a layer stays, not the first one.
    assert {str(head) for head in anatomy.heads} - {str(h) for h in least.remove} == {
        "L0.H3",
        "L1.H3",
        "L2.H3",
    }
    with pytest.raises(PlanError, match="at least 3 must be kept"):
        make_plan(scores, anatomy, constraints=Constraints(keep=0.1, min_heads=1))


def test_the_demo_s_budget_is_22_of_72_heads():
    anatomy = anatomy_of(layers=6, heads=12, groups=12)
    scores = scores_of(anatomy, [float(i) for i in range(72)])
    assert len(make_plan(scores, anatomy, constraints=Constraints(keep=0.7)).remove) == 22


def test_uniform_plans_keep_the_same_number_everywhere():
    for shape, gqa, left in (
        ((6, 6), "group", 4),
        ((6, 3), "group", 4),
        ((6, 3), "even", 3),
        ((6, 1), "group", 4),
    ):
        anatomy = anatomy_of(heads=shape[0], groups=shape[1])
        scores = scores_of(anatomy, [float(i * 7 % 18) for i in range(18)])
        plan = make_plan(scores, anatomy, constraints=Constraints(keep=0.6, uniform=True, gqa=gqa))
        assert set(plan.kept_per_site.values()) == {left}, (shape, gqa)


def test_uniform_contradicting_protect_is_refused_before_work():
    with pytest.raises(PlanError, match="L1 must keep 4 heads"):
        check_constraints(anatomy_of(), Constraints(keep=0.5, protect=("L1",), uniform=True))


def test_multi_query_attention_is_never_a_silent_no_op():
    anatomy = anatomy_of(heads=4, groups=1)
    scores = scores_of(anatomy, [float(i) for i in range(12)])
    assert len(make_plan(scores, anatomy, constraints=Constraints(keep=0.5)).remove) == 6


def test_scores_of_other_heads_are_refused():
    with pytest.raises(PlanError, match="8 heads and the model has 12"):
        make_plan(
            scores_of(anatomy_of(layers=2), [0.0] * 8),
            anatomy_of(),
            constraints=Constraints(keep=0.5),
        )


def test_reasons_are_given_where_the_score_alone_did_not_decide():
    anatomy = anatomy_of()
    scores = scores_of(anatomy, [float(i) for i in range(12)])
    plan = make_plan(scores, anatomy, constraints=Constraints(keep=0.75, protect=("L0.H0",)))
    assert plan.reasons["L0.H0"] == "kept: protected"
    assert HeadId.parse("L0.H3") in plan.remove
    assert "make room" in plan.reasons["L0.H3"]


def test_only_the_chosen_attentions_lose_heads():
    stacks = (("encoder", "self"), ("decoder", "self"), ("decoder", "cross"))
    anatomy = anatomy_of(layers=2, stacks=stacks)
    scores = scores_of(anatomy, [float(i) for i in range(len(anatomy.heads))])
    for names, share in (
        (("cross",), 1 / 3),
        (("decoder",), 2 / 3),
        (("decoder.self",), 1 / 3),
        (("encoder", "decoder.L1.cross"), 1 / 2),
    ):
        plan = make_plan(scores, anatomy, constraints=Constraints(keep=0.5, sites=names))
        assert len(plan.remove) == len(anatomy.heads) * share * 0.5
        for head in plan.remove:
            spoken_of = {str(head.site), head.site.stack, head.site.kind}
            spoken_of.add(f"{head.site.stack}.{head.site.kind}")
            assert spoken_of & set(names)
    with pytest.raises(PlanError, match="no attention 'vision'"):
        make_plan(scores, anatomy, constraints=Constraints(keep=0.5, sites=("vision",)))


def test_multi_query_attention_loses_single_heads_whatever_is_said():
    anatomy = anatomy_of(heads=4, groups=1)
    scores = scores_of(anatomy, [float(i) for i in range(12)])
    for gqa in ("group", "even", "pad"):
        plan = make_plan(scores, anatomy, constraints=Constraints(keep=0.75, gqa=gqa))
        assert [str(head) for head in plan.remove] == ["L0.H0", "L0.H1", "L0.H2"]


def test_padding_keeps_groups_even_and_names_no_more_than_it_must():
    (site,) = anatomy_of(layers=1, heads=8, groups=2).sites
    assert site.padded((0, 1, 2, 4)) == (0, 1, 2, 4, 5, 6)
    assert site.padded((0, 4)) == (0, 4)
    assert site.padded((5,)) == (5,)
    assert site.padded(()) == ()


def test_a_head_mask_is_made_from_the_anatomy():
    anatomy = anatomy_of(layers=2, heads=3, groups=3)
    assert anatomy.mask(["L0.H1", "L1.H2"]).tolist() == [1, 0, 1, 1, 1, 0]
    assert anatomy.mask({"L0": [1]}).tolist() == anatomy.mask([anatomy.heads[1]]).tolist()
    with pytest.raises(PlanError, match=r"no head L0\.H3"):
        anatomy.mask(["L0.H3"])
