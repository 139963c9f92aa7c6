"""Heads that go step by step, the others scored anew."""

import copy
import itertools
from contextlib import contextmanager

import accelerate
import pytest
import torch
from families import build, inspected, score
from test_scoring import setting

import headprune as hp
from headprune.batch import as_batches
from headprune.config import Constraints, Settings
from headprune.errors import ConfigError
from headprune.passes import SILENT, RunContext
from headprune.planning.plan import make_plan, score_in_steps
from headprune.plans import HeadScores
from headprune.runtime.journal import Journal
from headprune.surgery.fit import fit
from headprune.surgery.projections import can_fit, write_weights
from headprune.tasks.distill import Objective
from headprune.workflows.stepwise import (
    FEWEST_TO_RECONSTRUCT,
    Scoring,
    check_settings,
    score_with_steps,
    steps_fit,
)


def scores_of(anatomy, values):
    return HeadScores(method="gradient", heads=anatomy.heads, values=tuple(values), n=1, seed=0)


@pytest.fixture(scope="module")
def anatomies():
    return {name: inspected(build(name)) for name in ("bert", "llama")}


def drawn(anatomy, seed):
    """Return a rescore whose numbers change from step to step, and a list of what it was told had gone."""
    told = []

    def rescore(gone):
        told.append(frozenset(gone))
        generator = torch.Generator().manual_seed(1000 * seed + len(told))
        return scores_of(anatomy, torch.randn(len(anatomy.heads), generator=generator).tolist())

    return rescore, told


@pytest.mark.parametrize("gqa", ["group", "even", "pad"])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_plan_from_the_result_removes_what_went(anatomies, name, steps, uniform, gqa):
    anatomy = anatomies[name]
    rescore, told = drawn(anatomy, steps)
    constraints = Constraints(keep=0.5, uniform=uniform, gqa=gqa)
    found = score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=steps)
    assert all(earlier < later for earlier, later in itertools.pairwise(told))
    assert len(told) <= steps
    gone = set(make_plan(found, anatomy, constraints=constraints).remove)
    assert told[-1] <= gone
    # As many as one cut takes.
    once = make_plan(rescore(()), anatomy, constraints=constraints)
    assert len(gone) == len(once.remove)
    values = found.importance()
    lowest = min(values[head] for head in anatomy.heads if head not in gone)
    assert all(values[head] < lowest for head in gone)
    for earlier, later in zip(told, [*told[1:], gone], strict=True):
        went = [values[head] for head in later - earlier]
        assert all(values[head] < min(went) for head in earlier if went)


def test_one_step_is_scoring_once(anatomies):
    anatomy = anatomies["bert"]
    rescore, _told = drawn(anatomy, 0)
    constraints = Constraints(keep=0.5)
    stepped = score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=1)
    again, _told = drawn(anatomy, 0)
    once = again(())
    assert stepped.values == once.values
    assert (
        make_plan(stepped, anatomy, constraints=constraints).remove
        == make_plan(once, anatomy, constraints=constraints).remove
    )


def test_of_two_heads_that_stand_in_for_each_other_one_stays(anatomies):
    """Alone, each of them looks like nothing; when one has gone, the other is everything."""
    anatomy = anatomies["bert"]
    one, other = anatomy.heads[:2]

    def rescore(gone):
        values = {head: 1.0 + place for place, head in enumerate(anatomy.heads)}
        values[one] = 100.0 if other in gone else 0.1
        values[other] = 100.0 if one in gone else 0.2
        return scores_of(anatomy, values.values())

    constraints = Constraints(keep=1 - 4 / 18)
    plans = [
        make_plan(
            score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=steps),
            anatomy,
            constraints=constraints,
        )
        for steps in (1, 4)
    ]
    assert {one, other} <= set(plans[0].remove)
    assert one in plans[1].remove
    assert other not in plans[1].remove


def scored_for(model, anatomy, objective, settings, *, context=SILENT):
    scoring = Scoring(settings.score, settings.plan, settings.reconstruct, settings.data.seed)
    return score_with_steps(model, anatomy, objective, scoring, context=context)


def parts_of(batch, size):
    count = len(batch["labels"])
    return as_batches(
        [{k: v[at : at + size] for k, v in batch.items()} for at in range(0, count, size)]
    )


@contextmanager
def forwards(model):
    """Count what runs."""
    count = []
    handle = model.register_forward_pre_hook(lambda _module, _args: count.append(1))
    yield count
    handle.remove()


@pytest.mark.parametrize("method", ["gradient", "fisher", "fluctuation"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_steps_on_a_model_are_those_of_pruning_it_again_and_again(name, method, tmp_path):
    model, batch, loss = setting(name)
    anatomy = inspected(model)
    settings = Settings.of(keep=0.5, steps=3, reconstruct="none", method=method)
    context = RunContext(journal=Journal(tmp_path))
    batches = as_batches([batch])
    objective = Objective(batches, batches, loss)
    found = scored_for(model, anatomy, objective, settings, context=context)
    assert context.journal.count() == 3
    with forwards(model) as count:
        assert scored_for(model, anatomy, objective, settings, context=context) == found
    assert count == []
    went = [head for head, step in zip(found.heads, found.steps.went, strict=True) if step == 1]
    first = score(model, anatomy, batches=batches, loss=loss, method=method).by_head()
    assert all(found.by_head()[head] == first[head] for head in went)
    smaller, left, gone = copy.deepcopy(model), anatomy, set()
    for step in (1, 2, 3):
        scores = score(smaller, left, batches=batches, loss=loss, method=method)
        keep = (1 - 0.5 * step / 3) * len(anatomy.heads) / len(left.heads)
        plan = make_plan(scores, left, constraints=Constraints(keep=keep))
        gone |= set(plan.remove)
        hp.prune(smaller, plan.remove)
        left = inspected(smaller)
    constraints = Constraints(keep=0.5)
    assert set(make_plan(found, anatomy, constraints=constraints).remove) == gone


@pytest.mark.parametrize(("name", "asked"), [("bert", None), ("bert", "bias"), ("llama", None)])
def test_what_is_left_is_reconstructed_before_it_is_scored_again(name, asked):
    """By hand: fit for those that went, towards their own outputs; cut them, score what is left."""
    model, batch, loss = setting(name, rows=12)
    before = copy.deepcopy(model.state_dict())
    anatomy = inspected(model)
    batches = parts_of(batch, 5)
    objective = Objective(batches, batches, loss)
    settings = Settings.of(keep=0.5, steps=3, reconstruct=asked)
    found = scored_for(model, anatomy, objective, settings)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    how = asked or "refit"
    assert found.steps.reconstructed == how
    went: list = []
    for step in (1, 2, 3):
        smaller = copy.deepcopy(model)
        if went:
            mask = anatomy.mask(went)
            aims = {"methods": [how], "to_stream": False}
            (reconstructed,) = fit(smaller, anatomy, batches=batches, mask=mask, **aims)
            write_weights(smaller, reconstructed.weights)
            hp.prune(smaller, went)
        left = inspected(smaller)
        scores = score(smaller, left, batches=batches, loss=loss, method="unique")
        keep = (1 - 0.5 * step / 3) * len(anatomy.heads) / len(left.heads)
        plan = make_plan(scores, left, constraints=Constraints(keep=keep))
        for head in plan.remove:
            value = scores.by_head()[head]
            assert found.by_head()[head] == pytest.approx(value, rel=1e-3)
        went += plan.remove
    assert set(make_plan(found, anatomy, constraints=Constraints(keep=0.5)).remove) == set(went)


@pytest.mark.parametrize("method", ["unique", "gradient"])
def test_steps_do_not_depend_on_batch_size(method):
    model, batch, loss = setting("bert", rows=12)
    anatomy = inspected(model)
    settings = Settings.of(keep=0.5, method=method)
    found = [
        scored_for(model, anatomy, Objective(parts, parts, loss), settings)
        for parts in (parts_of(batch, size) for size in (12, 5, 1))
    ]
    for other in found[1:]:
        assert other.values == pytest.approx(found[0].values, rel=1e-3)
        assert other.steps == found[0].steps


def test_a_journal_tells_apart_what_was_reconstructed(tmp_path):
    model, batch, loss = setting("bert", rows=12)
    anatomy = inspected(model)
    objective = Objective(as_batches([batch]), as_batches([batch]), loss)
    kept = RunContext(journal=Journal(tmp_path))
    for asked in ("none", "bias", "refit"):
        settings = Settings.of(keep=0.5, steps=2, reconstruct=asked, method="gradient")
        found = scored_for(model, anatomy, objective, settings, context=kept)
        assert found == scored_for(model, anatomy, objective, settings)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_a_step_leaves_the_model_as_it_was(stop):
    model, batch, loss = setting("bert", rows=12)
    before = copy.deepcopy(model.state_dict())
    anatomy = inspected(model)
    batches = as_batches([batch])
    passes = []

    def stopping(outputs, batch):
        passes.append(1)
        if len(passes) > 1:  # of the first step there is one
            raise stop
        return loss(outputs, batch)

    settings = Settings.of(keep=0.5, steps=2, method="gradient")
    with pytest.raises(stop):
        scored_for(model, anatomy, Objective(batches, batches, stopping), settings)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    found = hp.score(model, batches, loss=loss).values
    assert found == hp.score(setting("bert", rows=12)[0], batches, loss=loss).values


def test_weights_that_wait_elsewhere_are_scored_in_steps_without_reconstruction():
    model, batch, loss = setting("bert", rows=12)
    anatomy = inspected(model)
    objective = Objective(as_batches([batch]), as_batches([batch]), loss)
    settings = Settings.of(keep=0.5, steps=2, method="gradient")
    bare = scored_for(model, anatomy, objective, settings.replaced(reconstruct="none"))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert not can_fit(model, anatomy)
    found = scored_for(model, anatomy, objective, settings)
    assert found.values == pytest.approx(bare.values, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_heads_are_scored_by_what_counts_on_reconstruction_only_where_there_is_some(steps):
    model, batch, loss = setting("bert", rows=12)
    objective = Objective(as_batches([batch]), as_batches([batch]), loss)

    def method(**more):
        settings = Settings.of(keep=0.5, steps=steps, **more)
        return scored_for(model, inspected(model), objective, settings).method

    assert method() == method(reconstruct="refit") == "unique"
    assert method(reconstruct="none") == "gradient"
    assert method(reconstruct="none", method="unique") == "unique"


def test_too_few_rows_reconstruct_nothing_between_steps():
    model, batch, loss = setting("bert", rows=FEWEST_TO_RECONSTRUCT - 1)
    anatomy = inspected(model)
    batches = as_batches([batch])
    settings = Settings.of(keep=0.5, steps=2, method="gradient")
    found = scored_for(model, anatomy, Objective(batches, batches, loss), settings)
    assert found.steps.reconstructed is None
    bare = settings.replaced(reconstruct="none")
    same = scored_for(model, anatomy, Objective(batches, batches, loss), bare)
    assert found == same
    assert steps_fit(found, settings, settings.plan)
    assert steps_fit(found, bare, bare.plan)
    enough = found.model_copy(update={"n": FEWEST_TO_RECONSTRUCT})
    assert not steps_fit(enough, settings, settings.plan)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 2}, {"steps": 2, "keep": 0.5, "method": "magnitude"}, {"steps": 2, "keep": 0.5, "normalize": "layer"}],
)  # fmt: skip
def test_steps_that_lead_nowhere_are_refused(settings):
    with pytest.raises(ConfigError, match="steps"):
        check_settings(Settings.of(**settings))
