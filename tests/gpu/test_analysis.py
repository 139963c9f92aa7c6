"""What heads do and how alike they are, on a device and with weights that wait in CPU memory: as on the CPU."""

import pytest
from families import build, inspected

import headprune as hp
from gpu.subjects import batches, partly_waiting
from headprune.analysis.similarity import compare_heads
from headprune.passes import RunContext


def _numbers(found):
    return {
        (one.role, one.column): (one.values, one.low, one.high, one.passes)
        for one in found.measures
    }


def assert_same(found, expected):
    assert found.undefined == expected.undefined
    found, expected = _numbers(found), _numbers(expected)
    assert found.keys() == expected.keys()
    for key, (*numbers, passes) in expected.items():
        *others, decided = found[key]
        assert decided == passes, key
        for these, those in zip(others, numbers, strict=True):
            assert these == pytest.approx(those, abs=1e-4, nan_ok=True), key


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_roles_are_those_of_the_cpu(family, apart):
    model = build(family)
    anatomy = inspected(model)
    expected = hp.analyze(model, batches(), anatomy=anatomy)
    assert len(expected.measures) > 3
    assert_same(hp.analyze(model.to(apart), batches(), anatomy=anatomy), expected)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_roles_of_a_model_that_waits_elsewhere_are_those_of_the_whole(family, device):
    anatomy = inspected(build(family))
    expected = hp.analyze(build(family), batches(), anatomy=anatomy)
    assert_same(
        hp.analyze(partly_waiting(build(family), device), batches(), anatomy=anatomy), expected
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_likeness_is_that_of_the_cpu(family, apart):
    model = build(family)
    anatomy = inspected(model)
    expected = compare_heads(model, anatomy, batches(), context=RunContext())
    found = compare_heads(model.to(apart), anatomy, batches(), context=RunContext())
    for group, other in zip(found, expected, strict=True):
        assert group.heads == other.heads
        for row, values in zip(group.divergences, other.divergences, strict=True):
            assert row == pytest.approx(values, abs=1e-5)
