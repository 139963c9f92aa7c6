"""Budgets: the plan meets them and loses the least, or an error names what is in reach."""

import copy
import itertools
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build, inspected, token_inputs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_plan import anatomy_of, scores_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import headprune as hp
from headprune.batch import as_batches
from headprune.config import Constraints, Settings, load_settings
from headprune.errors import ConfigError, PlanError
from headprune.footprint import fastest_ms, kv_cache_bytes_per_token
from headprune.planning.constraints import Target
from headprune.planning.costs import CostModel, cost_model, savings
from headprune.planning.plan import make_plan, score_in_steps
from headprune.planning.solve import cheapest_for, combine
from headprune.surgery.cut import cut
from headprune.workflows.stepwise import check_settings


@st.composite
def problems(draw):
    """Plain numbers only; see test_plan. Sites were pruned before, so that their units differ in size."""
    heads, groups = draw(st.sampled_from([(4, 4), (4, 2), (6, 2), (3, 1)]))
    layers = draw(st.integers(1, 3 if heads < 6 else 2))
    left = [draw(st.sets(st.integers(0, heads - 1), min_size=1).map(sorted)) for _ in range(layers)]
    total = sum(map(len, left))
    return {
        "shape": {"layers": layers, "heads": heads, "groups": groups},
        "left": left,
        "values": draw(st.lists(st.integers(-2, 9).map(float), min_size=total, max_size=total)),
        "prices": [draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) for _ in range(layers)],
        "min_heads": draw(st.integers(0, 2)),
        "multiple_of": draw(st.sampled_from([1, 1, 2])),
    }


def posed(problem):
    whole = anatomy_of(**problem["shape"])
    sites = tuple(
        replace(site, heads=tuple(left), execution="zero_padded")
        for site, left in zip(whole.sites, problem["left"], strict=True)
    )
    anatomy = replace(whole, sites=sites)
    each = dict(zip([site.id for site in sites], problem["prices"], strict=True))

    def taken(site, kept):
        return each[site.id][0] * len(kept) + each[site.id][1] * len(site.groups(kept))

    costs = CostModel(
        3 + sum(taken(site, site.heads) for site in sites),
        lambda site, kept: taken(site, site.heads) - taken(site, kept),
    )
    limits = {name: problem[name] for name in ("min_heads", "multiple_of")}
    return anatomy, scores_of(anatomy, problem["values"]), costs, limits


def ways(site, limits):
    """Return all heads that may stay of a site, whichever units go."""
    by_group = site.num_key_value_heads > 1 and site.group_size > 1
    units = list(site.groups(site.heads).values()) if by_group else [(h,) for h in site.heads]
    for count in range(len(units) + 1):
        for stay in itertools.combinations(units, count):
            kept = tuple(sorted(itertools.chain(*stay)))
            enough = kept == site.heads or len(kept) >= limits["min_heads"]
            if enough and count % limits["multiple_of"] == 0:
                yield kept


def all_plans(anatomy, scores, costs, limits):
    """Yield what every lawful plan saves, how many heads it leaves, and what it costs."""
    values = scores.by_head()
    lowest = min(0.0, *values.values())
    by_name = {str(head): value - lowest for head, value in values.items()}
    for kept in itertools.product(*(ways(site, limits) for site in anatomy.sites)):
        pairs = list(zip(anatomy.sites, kept, strict=True))
        gone = [
            f"{site.id}.H{head}" for site, stay in pairs for head in site.heads if head not in stay
        ]
        saved = sum(costs.saved(site, stay) for site, stay in pairs)
        yield saved, sum(map(len, kept)), sum(by_name[name] for name in gone)


def cost_of(plan, scores):
    values = scores.by_head()
    lowest = min(0.0, *values.values())
    return sum(values[head] - lowest for head in plan.remove)


@given(problems(), st.integers(5, 100))
@settings(max_examples=80, deadline=None)
def test_a_target_is_met_at_the_least_loss_or_an_error_names_the_smallest_in_reach(
    problem, percent
):
    anatomy, scores, costs, limits = posed(problem)
    every = list(all_plans(anatomy, scores, costs, limits))
    assume(every)
    target = f"{percent}%"
    limit = costs.whole * percent // 100
    fitting = [plan for plan in every if costs.whole - plan[0] <= limit]

    def planned(target):
        return make_plan(
            scores,
            anatomy,
            constraints=Constraints(target_parameters=target, **limits),
            costs=costs,
        )

    if not fitting:
        with pytest.raises(PlanError, match="smallest that pruning heads can reach is") as error:
            planned(target)
        least = costs.whole - max(plan[0] for plan in every)
        assert f"can reach is {least} parameters" in error.value.what
        share = re.search(r"use `target_parameters=([\d.]+)` or more", error.value.hint).group(1)
        reached = planned(share).budget["after"]
        assert reached == least
        return
    plan = planned(target)
    kept = anatomy.kept_per_site(set(plan.remove))
    after = costs.whole - sum(costs.saved(site, kept[site.id]) for site in anatomy.sites)
    assert plan.budget["after"] == after <= limit == plan.budget["limit"]
    assert all(kept[site.id] in set(ways(site, limits)) for site in anatomy.sites)
    assert cost_of(plan, scores) == pytest.approx(min(cost for _, _, cost in fitting))


@given(problems(), st.integers(1, 18), st.booleans())
@settings(max_examples=80, deadline=None)
def test_so_many_heads_stay_at_the_least_loss(problem, number, share):
    """``heads`` is the most that stay; ``keep`` is rounded up to what units allow."""
    anatomy, scores, costs, limits = posed(problem)
    total = len(anatomy.heads)
    assume(number <= total)
    every = list(all_plans(anatomy, scores, costs, limits))
    assume(every)
    counts = {left for _, left, _ in every}
    wanted = [left for left in counts if (left >= number if share else left <= number)]
    asked = {"keep": number / total} if share else {"heads": number}
    constraints = Constraints(**asked, **limits)
    if not wanted or min(counts) > number:
        with pytest.raises(PlanError, match="must be kept|keep at most"):
            make_plan(scores, anatomy, constraints=constraints)
        return
    nearest = min(wanted) if share else max(wanted)
    if share and nearest == total != number:
        with pytest.raises(PlanError, match="removes no head"):
            make_plan(scores, anatomy, constraints=constraints)
        return
    plan = make_plan(scores, anatomy, constraints=constraints)
    assert plan.budget["heads_after"] == nearest
    assert plan.budget["heads_wanted"] == number
    best = min(cost for _, left, cost in every if left == nearest)
    assert cost_of(plan, scores) == pytest.approx(best)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_combinations_are_those_of_brute_force(menus):
    gains = [[gain for gain, _ in menu] for menu in menus]
    costs = [[float(cost) for _, cost in menu] for menu in menus]
    found = combine(gains, costs)
    best = {}
    for picked in itertools.product(*menus):
        total = sum(gain for gain, _ in picked)
        best[total] = min(best.get(total, 1e9), sum(cost for _, cost in picked))
    for total, cost in enumerate(found.costs.tolist()):
        assert cost == best.get(total, float("inf"))
        if total in best:
            options = found.options(total)
            assert sum(gain[o] for gain, o in zip(gains, options, strict=True)) == total
            assert sum(c[o] for c, o in zip(costs, options, strict=True)) == cost


def test_on_a_grid_gains_are_never_overstated():
    generator = torch.Generator().manual_seed(0)
    gains = torch.rand(8, 3, generator=generator).mul(7).tolist()
    costs = torch.rand(8, 3, generator=generator).tolist()
    for least in (0.0, 10.0, 25.0, sum(map(max, gains))):
        picked, step = cheapest_for(gains, costs, least=least)
        reached = sum(gain[place] for gain, place in zip(gains, picked, strict=True))
        assert reached >= least - 1e-9
        best = (
            min(
                sum(cost[place] for cost, place in zip(costs, places, strict=True))
                for places in itertools.product(range(3), repeat=8)
                if sum(gain[place] for gain, place in zip(gains, places, strict=True))
                >= least + (8 * step if least < reached else 0)
            )
            if least <= 25
            else None
        )
        cost = sum(cost[place] for cost, place in zip(costs, picked, strict=True))
        assert best is None or cost <= best + 1e-9


@pytest.mark.parametrize(
    ("text", "amount", "is_share"),
    [("0.8", 0.8, True), ("80%", 0.8, True), ("1", 1, True), (0.5, 0.5, True), ("20M", 2e7, False),
     ("1.2g", 1.2e9, False), ("7B", 7e9, False), ("48K", 48_000, False), (20_000_000, 2e7, False), ("1e6", 1e6, False)],
)  # fmt: skip
def test_targets_are_shares_or_numbers(text, amount, is_share):
    found = Target.parse("parameters", text)
    assert (float(found.amount), found.is_share) == (amount, is_share)


def test_milliseconds_have_a_unit():
    assert Target.parse("latency", "12ms").limit(50.0) == 12.0
    assert Target.parse("latency", "0.5 s").limit(5.0) == 500.0
    assert Target.parse("latency", "80%").limit(50.0) == 40.0
    assert Target.parse("parameters", "0.29").limit(100) == 29


@pytest.mark.parametrize("text", ["", "much", "0", "120%", "-3", "20X", "nan", "inf"])
@pytest.mark.parametrize("resource", ["parameters", "latency"])
def test_what_is_no_target_is_refused(resource, text):
    with pytest.raises(PlanError, match="is no target"):
        Target.parse(resource, text)


def test_milliseconds_without_a_unit_are_refused():
    with pytest.raises(PlanError, match="is no target"):
        Target.parse("latency", "12")


def test_uniform_budgets_keep_the_same_number_everywhere():
    anatomy = anatomy_of(layers=3, heads=6, groups=3)
    scores = scores_of(anatomy, [float(i * 7 % 18) for i in range(18)])
    costs = CostModel(40, lambda site, kept: 2 * (len(site.heads) - len(kept)))
    for asked, left in (
        ({"heads": 13}, 4),
        ({"heads": 12}, 4),
        ({"target_flops": "0.6"}, 2),
        ({"target_flops": "28"}, 4),
        ({"keep": 2 / 3, "multiple_of": 2}, 4),
    ):
        plan = make_plan(
            scores,
            anatomy,
            constraints=Constraints(uniform=True, **asked),
            costs=costs if "target_flops" in asked else None,
        )
        assert set(plan.kept_per_site.values()) == {left}, asked


def test_multiples_are_of_groups_where_groups_go():
    for heads, groups, gqa, left in (
        (8, 8, "group", 4), (8, 4, "group", 2), (8, 4, "even", 4), (8, 1, "group", 4), (8, 4, "pad", 2),
    ):  # fmt: skip
        anatomy = anatomy_of(layers=2, heads=heads, groups=groups)
        scores = scores_of(anatomy, [float(i * 7 % 16) for i in range(16)])
        constraints = Constraints(keep=0.6, gqa=gqa, multiple_of=left)
        plan = make_plan(scores, anatomy, constraints=constraints)
        kept = anatomy.kept_per_site(set(plan.remove))
        for site in anatomy.sites:
            slots = site.padded(kept[site.id]) if gqa == "pad" else kept[site.id]
            of_groups = groups > 1 and heads > groups and gqa != "even"
            number = len(site.groups(slots)) if of_groups else len(slots)
            assert number % left == 0
        assert plan.constraints["multiple_of"] == left
    with pytest.raises(PlanError, match="no number that may be kept is a multiple of 5"):
        make_plan(
            scores_of(anatomy_of(), [0.0] * 12),
            anatomy_of(),
            constraints=Constraints(keep=0.5, multiple_of=5),
        )


def test_steps_lead_to_a_number_of_heads():
    anatomy = anatomy_of()
    told = []

    def rescore(gone):
        told.append(set(gone))
        return scores_of(anatomy, [float((7 * i + 5 * len(told)) % 12) for i in range(12)])

    constraints = Constraints(heads=5)
    found = score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=3)
    plan = make_plan(found, anatomy, constraints=constraints)
    assert plan.budget["heads_after"] == 5
    assert len(told) == 3
    assert told[1] < told[2] < set(plan.remove)
    assert found.steps.budget == "heads=5"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_cut_model_is_what_the_plan_says(name):
    model = build(name)
    anatomy = inspected(model)
    scores = scores_of(
        anatomy, [float(i * 7 % len(anatomy.heads)) for i in range(len(anatomy.heads))]
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    plan = hp.plan(
        scores, Constraints(target_parameters="90%", gqa="even"), anatomy=anatomy, model=model
    )
    assert plan.budget["before"] == whole
    smaller = hp.prune(copy.deepcopy(model), plan.remove)
    after = sum(parameter.numel() for parameter in smaller.parameters())
    assert plan.budget["after"] == after <= 0.9 * whole
    # What is pruned again counts from where it is.
    left = inspected(smaller)
    again = hp.plan(
        scores_of(left, [1.0] * len(left.heads)),
        Constraints(target_parameters=after - 1),
        anatomy=left,
        model=smaller,
    )
    assert again.budget["before"] == after > again.budget["after"]


def test_flops_of_the_whole_model_are_those_that_torch_counts():
    model = build("llama").float()
    model.set_attn_implementation("eager")
    anatomy = inspected(model)
    scores = scores_of(anatomy, [1.0] * len(anatomy.heads))
    budget = hp.plan(scores, Constraints(target_flops="1"), anatomy=anatomy, model=model).budget
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.ones(1, 512, dtype=torch.long))
    assert budget["before"] == pytest.approx(counter.get_total_flops() / 512, rel=0.01)


def test_a_cache_target_counts_groups():
    model = build("llama")
    anatomy = inspected(model)
    scores = scores_of(anatomy, [float(i) for i in range(len(anatomy.heads))])
    plan = hp.plan(scores, Constraints(target_kv_cache="50%"), anatomy=anatomy, model=model)
    assert (
        plan.budget["before"] == 3 * 4 * 2 * 4 * 4
    )  # layers, groups, keys and values, head_dim, bytes
    assert sum(plan.kept_per_site.values()) == 12
    with pytest.raises(PlanError, match="keeps no keys and values"):
        bert = build("bert")
        found = inspected(bert)
        hp.plan(
            scores_of(found, [0.0] * 18),
            Constraints(target_kv_cache=0.5),
            anatomy=found,
            model=bert,
        )


@pytest.mark.parametrize(
    ("family", "gqa"), [("gpt2", "group"), ("llama", "group"), ("llama", "even"), ("qwen3", "pad")]
)
@pytest.mark.parametrize("min_heads", [0, 1])
def test_the_cache_shrinks_in_memory_by_what_was_counted(family, gqa, min_heads):
    """Also where a layer loses every head."""
    model = build(family)
    anatomy = inspected(model)
    values = [float(head.head + 10 * (head.site.layer or 0)) for head in anatomy.heads]
    constraints = Constraints(keep=0.5, gqa=gqa, min_heads=min_heads)
    plan = hp.plan(scores_of(anatomy, values), constraints, anatomy=anatomy)
    batch = as_batches([token_inputs(rows=2, length=12)])[0]
    before = kv_cache_bytes_per_token(model, batch=batch)
    saved = savings(model, anatomy, removed=plan.remove, pad=gqa == "pad").kv_cache_bytes_per_token
    hp.prune(model, plan, anatomy=anatomy)
    assert kv_cache_bytes_per_token(model, batch=batch) == before - saved
    assert saved > 0 or gqa != "group"


def test_what_does_not_generate_keeps_no_cache():
    batch = as_batches([token_inputs(rows=2, length=12)])[0]
    assert kv_cache_bytes_per_token(build("bert"), batch=batch) is None
    assert kv_cache_bytes_per_token(build("gpt2"), batch=batch) == 3 * 2 * 48 * 4
    classifier = build("llama", cls="LlamaForSequenceClassification", num_labels=2)
    assert kv_cache_bytes_per_token(classifier, batch=batch) is None
    small = {"vocab_size": 96, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    assert kv_cache_bytes_per_token(MambaForCausalLM(MambaConfig(**small)), batch=batch) is None


def test_of_an_encoder_decoder_the_cache_is_the_decoder_s_own():
    """Keys of what the encoder put out are there once, however long the text becomes."""
    sizes = {"vocab_size": 96, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 3}
    model = T5ForConditionalGeneration(T5Config(**sizes, num_layers=1, num_decoder_layers=2))
    inputs = token_inputs(rows=2, length=12)
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :8]
    (batch,) = as_batches([inputs])
    assert kv_cache_bytes_per_token(model, batch=batch) == 2 * 2 * 3 * 4 * 4


@contextmanager
def a_clock_of_operations(monkeypatch):
    """What takes time is arithmetic alone, 1e9 operations a second, so that other work on the machine changes nothing."""
    with FlopCounterMode(display=False) as counter, monkeypatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: counter.get_total_flops() / 1e9)
        yield


def operations_ms(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops() / 1e6


def test_latency_is_planned_from_a_measured_table(monkeypatch):
    monkeypatch.setattr("headprune.planning.costs._LEVELS", 4)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, head_dim=96, initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    before = copy.deepcopy(model.state_dict())
    anatomy = inspected(model)
    scores = scores_of(anatomy, [float(i * 5 % 16) for i in range(16)])
    batch = {"input_ids": torch.ones(4, 24, dtype=torch.long)}
    constraints = Constraints(target_latency="75%")
    with a_clock_of_operations(monkeypatch):
        costs = cost_model(
            model, anatomy, constraints=constraints, batches=lambda: as_batches([batch])
        )
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [
        module.q_proj.out_features for module in (layer.self_attn for layer in model.model.layers)
    ] == [768, 768]
    rows = {"input_ids": torch.ones(32, 24, dtype=torch.long)}
    assert costs.whole == pytest.approx(operations_ms(model, rows))
    (site, _other) = anatomy.sites
    saved = [costs.saved(site, tuple(range(count))) for count in range(9)]
    # Without heads an attention isn't called at all; between 1 and 8 heads each costs as much as the next.
    assert np.diff(saved[1:]) == pytest.approx([-saved[1] / 7] * 7)
    assert saved[8] == 0 < saved[1] < saved[0]
    plan = make_plan(scores, anatomy, constraints=constraints, costs=costs)
    assert plan.budget["after"] <= plan.budget["limit"] == 0.75 * costs.whole
    cut(model, anatomy, remove=plan.remove)
    assert operations_ms(model, rows) == pytest.approx(plan.budget["after"])
    assert "32 rows of 24 tokens" in plan.budget["measured"]
    assert plan.budget["table"][0]["attentions"] == ["L0", "L1"]
    with pytest.raises(PlanError, match="measured on data"):
        hp.plan(scores, Constraints(target_latency="80%"), anatomy=anatomy, model=model)


def test_reasons_don_t_say_that_a_score_decided_alone():
    anatomy = anatomy_of(layers=2)
    scores = scores_of(anatomy, [0.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    first = anatomy.sites[0].id
    costs = CostModel(100, lambda site, kept: (4 - len(kept)) * (2 if site.id == first else 20))
    constraints = Constraints(target_parameters="60%")
    plan = make_plan(scores, anatomy, constraints=constraints, costs=costs)
    assert [str(head) for head in plan.remove] == ["L1.H0", "L1.H1"]
    assert plan.reasons["L0.H0"].endswith("or others meet the budget at less cost")


def test_one_budget_at_a_time(tmp_path):
    anatomy = anatomy_of()
    scores = scores_of(anatomy, [0.0] * 12)
    for budgets in ({}, {"max_drop": 0.1}):
        with pytest.raises(PlanError, match="no budget"):
            hp.plan(scores, Constraints(**budgets), anatomy=anatomy)
    with pytest.raises(PlanError, match="whole model"):
        hp.plan(scores, Constraints(target_flops="80%"), anatomy=anatomy)
    with pytest.raises(ConfigError, match="2 budgets"):
        Constraints(keep=0.5, heads=3)
    with pytest.raises(ConfigError, match="steps need to know"):
        check_settings(Settings.of(target_flops="80%", steps=2))
    with pytest.raises(PlanError, match="no target"):
        check_settings(Settings.of(target_flops="much"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("keep: 0.7\nmodel: x\n")
    assert load_settings({"heads": 3}, file=recipe)[0].plan.budgets == {"heads": 3}
    recipe.write_text("target_parameters: 0.8\nmodel: x\n")
    assert load_settings({}, file=recipe)[0].plan.budgets == {"target_parameters": "0.8"}


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 3), (1e9, 30)])
def test_models_take_turns_and_not_for_ever(bert, seconds, turns):
    other = build("bert", seed=1)
    seen = []
    for name, model in (("first", bert), ("other", other)):
        model.register_forward_pre_hook(lambda _model, _args, name=name: seen.append(name))
    (batch,) = as_batches([token_inputs(rows=4)])
    found = fastest_ms([bert, other], batch=batch, rows=1, seconds=seconds)
    assert seen == ["first", "other"] * (1 + turns)  # one to warm up
    assert all(milliseconds > 0 for milliseconds in found)


def test_a_target_is_met_or_refused_whatever_the_scores():
    """Scores decide which options an attention has: a target that flat scores can reach may be out of reach."""
    model = build("llama")
    anatomy = inspected(model)
    constraints = Constraints(target_kv_cache=0.25, gqa="pad", min_heads=2)
    costs = cost_model(model, anatomy, constraints=constraints, batches=lambda: ())
    generator, refused = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        values = torch.rand(len(anatomy.heads), generator=generator).tolist()
        scores = scores_of(anatomy, values)
        try:
            plan = make_plan(scores, anatomy, constraints=constraints, costs=costs)
        except PlanError as error:
            assert "the smallest that pruning heads can reach" in str(error)
            refused += 1
        else:
            assert plan.budget["after"] <= plan.budget["limit"]
    assert refused
