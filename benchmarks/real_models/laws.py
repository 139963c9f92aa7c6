"""The chain: score, plan, mask, prune, save, reload; and what must hold on the way."""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import headprune as hp
from benchmarks.real_models.subject import Law, Report, Round, Sanity, Subject, at_least
from headprune.anatomy.sites import Anatomy
from headprune.errors import HeadpruneError
from headprune.verify import reload_is_identical

# fp32 rounding, relative to the largest output: heads that are cut change the order in which sums are taken.
_TOLERANCE = 1e-5


def check(name: str, subject: Subject) -> Report:
    """Run the whole chain on one model."""
    start = time.monotonic()
    model = hp.load(subject.directory, device="cpu")
    base = _sanity(subject, model)
    laws = subject.base(base)
    rounds: list[Round] = []
    problem = ""
    try:
        anatomy = hp.inspect(model)
        laws.append(_all_heads_are_found(anatomy, subject.heads))
        scores = hp.score(
            model, subject.batches, loss=subject.loss, method="gradient", anatomy=anatomy
        )
        laws.append(_scores_are_numbers(scores))
        rounds.extend(
            _round(
                subject,
                f"{keep:g}",
                hp.plan(scores, hp.Constraints(keep=keep), anatomy=anatomy).remove,
            )
            for keep in subject.keeps
        )
        rounds.append(_round(subject, "some of each", _some_of_each(anatomy, scores)))
    except HeadpruneError as error:
        problem = str(error)
    seconds = time.monotonic() - start
    return Report(name, base, tuple(laws), tuple(rounds), seconds, problem)


def _some_of_each(anatomy: Anatomy, scores: hp.HeadScores) -> list[str]:
    """Return the least important head of every attention, and of every other one the two least; of GQA, whole groups.

    A plan may spare whole stacks; this makes sure that each of them is cut, and unevenly.
    """
    values = scores.by_head()
    removed: list[str] = []
    for at, site in enumerate(anatomy.sites):
        names = {head.head: head for head in anatomy.heads if head.site == site.id}
        groups = [[names[head] for head in group] for group in site.groups(site.heads).values()]
        groups.sort(key=lambda group: sum(values[head] for head in group))
        removed += [str(head) for group in groups[:-1][: 1 + at % 2] for head in group]
    return removed


def _round(subject: Subject, keep: str, remove: Sequence[hp.HeadId | str]) -> Round:
    model = hp.load(subject.directory, device="cpu")
    anatomy = hp.inspect(model)
    before, whole = _count(model), _outputs(model, subject.inputs)
    with hp.masked(model, remove, anatomy=anatomy):
        masked, said = _outputs(model, subject.inputs), subject.texts(model)
    hp.prune(model, remove, anatomy=anatomy)
    pruned = _outputs(model, subject.inputs)
    kept = {str(site.id): len(site.heads) for site in hp.inspect(model).sites}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "pruned"
        route = hp.save(model, directory, tokenizer=subject.tokenizer)
        again = hp.load(directory, device="cpu")
        fresh = reload_is_identical(
            model, directory, inputs=subject.inputs, auto_class=subject.auto_class, route=route
        )
    sanity = _sanity(subject, again)
    laws = (
        _cut_is_uneven(kept),
        _heads_did_something(whole, masked),
        _difference("masked == pruned", masked, pruned, relative_limit=_TOLERANCE),
        Law("pruned writes what masked wrote", _count_differing(said, sanity.texts), 0.0),
        _difference(
            "reloaded == pruned", pruned, _outputs(again, subject.inputs), relative_limit=0.0
        ),
        Law("reloaded in a fresh process", fresh.measured, fresh.limit, fresh.detail),
    )
    heads = (len(anatomy.heads), sum(kept.values()))
    return Round(keep, heads, (before, _count(again)), kept, str(route), laws, sanity)


def _sanity(subject: Subject, model: PreTrainedModel) -> Sanity:
    return Sanity(subject.numbers(model), subject.texts(model))


@torch.no_grad()
def _outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = model(**inputs)[0]
    return found


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _kind(site: str) -> str:
    """Return which attention a site is: ``cross``, ``encoder``, ``decoder``, or nothing where there is one stack."""
    first, *rest = site.split(".")
    return "cross" if "cross" in rest else first if rest else ""


def _all_heads_are_found(anatomy: Anatomy, expected: Mapping[str, int]) -> Law:
    found = Counter(_kind(str(head.site)) for head in anatomy.heads)
    off = sum(abs(found[kind] - expected.get(kind, 0)) for kind in {*found, *expected})
    return Law("all heads are found", off, 0.0, f"{dict(found)}, expected {dict(expected)}")


def _scores_are_numbers(scores: hp.HeadScores) -> Law:
    values = torch.tensor(list(scores.by_head().values()))
    bad = int((~values.isfinite()).sum()) + int((values == 0).sum())
    return Law("every head has a score", bad, 0.0, "heads with a score of 0 or none")


def _cut_is_uneven(kept: Mapping[str, int]) -> Law:
    """Return the law that this check tries the hard case: layers that keep different numbers of heads."""
    return at_least("layers keep different numbers of heads", len(set(kept.values())), 2)


def _heads_did_something(whole: Tensor, masked: Tensor) -> Law:
    """Return the law that the comparison with masking isn't one of nothing with nothing."""
    moved = float((whole - masked).abs().max() / whole.abs().max())
    return at_least("the heads that go did something", moved, 1e-3)


def _difference(name: str, first: Tensor, second: Tensor, *, relative_limit: float) -> Law:
    scale = float(first.abs().max())
    largest = float((first - second).abs().max())
    return Law(
        name, largest / scale, relative_limit, f"{largest:.3g} where outputs reach {scale:.3g}"
    )


def _count_differing(first: Mapping[str, str], second: Mapping[str, str]) -> float:
    return float(sum(first[key] != second[key] for key in first))
