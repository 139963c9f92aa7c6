"""Documents compared: what heads do and how much they matter, by relative depth, and head by head where heads are the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import atanh, isnan, sqrt, tanh
from typing import Any

import numpy as np
from scipy.stats import rankdata

from headprune.analysis.comparison import (
    BINS,
    Compared,
    Comparison,
    Correlation,
    Lost,
    OnlyIn,
    Profile,
)
from headprune.analysis.roles import Roles
from headprune.artefact import Z_95
from headprune.heads import HeadId
from headprune.plans import HeadScores
from headprune.tasks.metrics import spearman


@dataclass(frozen=True)
class Subject:
    """What documents say of one model on one set of rows.

    Args:
        name: What it is called in the comparison.
        heads: The heads that the model has; documents of a model that was pruned later may know more.
        roles: What its heads do.
        scores: How much they matter, by one or more methods.
    """

    name: str
    heads: frozenset[HeadId]
    roles: Roles | None = None
    scores: tuple[HeadScores, ...] = ()

    @property
    def documents(self) -> tuple[Roles | HeadScores, ...]:
        """All that is known of it."""
        return (*filter(None, [self.roles]), *self.scores)

    @property
    def model(self) -> dict[str, Any]:
        """The facts about its model."""
        return self.documents[0].model

    @property
    def origin(self) -> str | None:
        """The fingerprint of the model before it was ever pruned; None where that isn't known."""
        fingerprint: str | None = (self.model.get("source") or self.model).get("fingerprint")
        return fingerprint


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Compare what documents say.

    Heads are the same, by their original index, in the same model and in models that were pruned from it. What else has heads of
    the same names, such as another checkpoint, is compared by depth.
    """
    pairs = list(combinations(subjects, 2))
    different = {
        f"{one.name}, {other.name}": why for one, other in pairs if (why := _difference(one, other))
    }
    same = [pair for pair in pairs if not _difference(*pair)]
    ways = [pair for one, other in same for pair in ((one, other), (other, one))]
    return Comparison(
        subjects=tuple(map(_compared, subjects)),
        profiles=tuple(profile for one in subjects for profile in _profiles(one, subjects)),
        correlations=tuple(value for pair in same for value in _correlations(*pair)),
        lost=tuple(_lost(one, other) for one, other in ways if one.heads - other.heads),
        only_in=tuple(found for one in subjects for found in _only_in(one, subjects)),
        different=different,
    )


def _difference(one: Subject, other: Subject) -> str:
    """Return why heads of the same name aren't the same head; empty where they are."""
    if one.origin == other.origin and (one.origin or one.heads == other.heads):
        return ""
    types = [subject.model.get("model_type") for subject in (one, other)]
    if types[0] != types[1]:
        return f"other models ({types[0]}, {types[1]})"
    return "other weights, and nothing says that both models come from one"


def _compared(subject: Subject) -> Compared:
    noted = [one.data for one in subject.documents if one.data]
    return Compared(
        name=subject.name,
        model=str(subject.model.get("name") or "-"),
        data={str(one.get("name")): int(one.get("n") or 0) for one in noted},
        heads=len(subject.heads),
    )


def _importance(scores: HeadScores) -> str:
    return f"importance:{scores.method}" + (
        "" if scores.objective == "loss" else f":{scores.metric or scores.objective}"
    )


def _profiles(subject: Subject, subjects: Sequence[Subject]) -> Iterator[Profile]:
    alike = [one for one in subjects if not _difference(subject, one)]
    layers: dict[str, int] = {}
    for head in (head for one in alike for head in one.heads):
        layers[head.site.stack] = max(layers.get(head.site.stack, 0), head.site.layer + 1)
    for measure, values in _by_depth(subject):
        parts: dict[str, dict[HeadId, float]] = {}
        for head, value in values.items():
            parts.setdefault(_part(head), {})[head] = value
        for part, of_part in parts.items():
            bins: list[list[float]] = [[] for _ in range(BINS)]
            for head, value in of_part.items():
                place = head.site.layer * BINS // max(1, layers[head.site.stack] - 1)
                bins[min(BINS - 1, place)].append(value)
            yield Profile(
                measure=measure,
                subject=subject.name,
                part=part,
                heads=tuple(map(len, bins)),
                values=tuple(float(np.mean(one)) if one else None for one in bins),
                overall=float(np.mean(list(of_part.values()))),
            )


def _part(head: HeadId) -> str:
    site = head.site
    return ".".join(filter(None, [site.stack, "" if site.kind == "self" else site.kind]))


def _by_depth(subject: Subject) -> Iterator[tuple[str, Mapping[HeadId, float]]]:
    """Yield each measure with what is averaged: whether a head has a role, and its rank."""
    roles = subject.roles
    for role in roles.names if roles else ():
        if roles and role in roles.thresholds:
            having = {*roles.heads_with(role)}
            yield role, {head: float(head in having) for head in _ordered(roles, subject)}
    for scores in subject.scores:
        heads, importance = _ordered(scores, subject), scores.importance()
        ranks = rankdata([importance[head] for head in heads]) - 1
        scaled = (ranks / (len(heads) - 1)) if len(heads) > 1 else ranks + 0.5
        yield _importance(scores), dict(zip(heads, map(float, scaled), strict=True))


def _ordered(document: Roles | HeadScores, subject: Subject) -> list[HeadId]:
    return [head for head in document.heads if head in subject.heads]


def _numbers(subject: Subject) -> dict[str, dict[HeadId, float]]:
    """Return what ranks heads: the number of each role that has one, and importance."""
    numbers: dict[str, dict[HeadId, float]] = {}
    for one in subject.roles.measures if subject.roles else ():
        if subject.roles and not one.column:
            pairs = zip(subject.roles.heads, one.values, strict=True)
            numbers[one.role] = {head: value for head, value in pairs if value is not None}
    for scores in subject.scores:
        numbers[_importance(scores)] = scores.importance()
    return numbers


def _correlations(one: Subject, other: Subject) -> Iterator[Correlation]:
    first, second = _numbers(one), _numbers(other)
    for measure in first:
        if measure in second:
            shared = {*first[measure], *second[measure]} & one.heads & other.heads
            heads = sorted(shared & first[measure].keys() & second[measure].keys())
            sides = [np.array([side[measure][head] for head in heads]) for side in (first, second)]
            value = spearman(*sides) if len(heads) > 1 else float("nan")
            yield Correlation(
                measure=measure,
                first=one.name,
                second=other.name,
                heads=len(heads),
                value=None if isnan(value) else value,
                interval=_interval(value, len(heads)),
            )


def _interval(value: float, n: int) -> tuple[float, float] | None:
    if isnan(value) or n < 4:
        return None
    if abs(value) > 1 - 1e-12:
        return value, value
    half = Z_95 * sqrt((1 + value**2 / 2) / (n - 3))
    return tanh(atanh(value) - half), tanh(atanh(value) + half)


def _lost(one: Subject, other: Subject) -> Lost:
    known = dict.fromkeys(head for document in one.documents for head in document.heads)
    gone = [head for head in known if head in one.heads and head not in other.heads]
    roles = one.roles
    every = {name: roles.heads_with(name) for name in roles.names} if roles else {}
    having = {name: one.heads & {*heads} for name, heads in every.items() if one.heads & {*heads}}
    return Lost(
        first=one.name,
        second=other.name,
        heads=tuple(gone),
        roles={name: tuple(h for h in gone if h in heads) for name, heads in having.items()},
        having={name: len(heads) for name, heads in having.items()},
    )


@dataclass(frozen=True)
class _Finding:
    """Whether something holds of a head (None: undecided), and the interval, if any, that must not overlap those elsewhere."""

    holds: bool | None
    low: float | None = None
    high: float | None = None

    def is_beyond(self, other: "_Finding") -> bool:
        """Whether it holds here and not there, surely."""
        apart = self.low is None or other.high is None or self.low > other.high
        return self.holds is True and other.holds is False and apart


def _findings(subject: Subject) -> dict[tuple[str, str], dict[HeadId, _Finding]]:
    """Return by measure and column what holds of each head."""
    findings: dict[tuple[str, str], dict[HeadId, _Finding]] = {}
    roles, in_roles = subject.roles, subject.roles.heads if subject.roles else ()
    for one in roles.measures if roles else ():
        cells = map(_Finding, one.passes, one.low, one.high)
        findings[one.role, one.column] = dict(zip(in_roles, cells, strict=True))
    for scores in subject.scores:
        if scores.standard_errors is not None and scores.steps is None:
            values = scores.by_head()
            mean = float(np.mean([values[head] for head in _ordered(scores, subject)]))
            findings[_importance(scores), ""] = {
                head: _Finding(_side(values[head] - mean, Z_95 * error))
                for head, error in zip(scores.heads, scores.standard_errors, strict=True)
            }
    return findings


def _side(above: float, half: float) -> bool | None:
    """Return whether a number is above, whether it is below, or None where its interval has both."""
    return above > 0 if abs(above) > half else None


def _only_in(subject: Subject, subjects: Sequence[Subject]) -> Iterator[OnlyIn]:
    others = [
        _findings_of_heads(one)
        for one in subjects
        if one is not subject and not _difference(subject, one)
    ]
    found: dict[str, set[HeadId]] = {}
    for (measure, column), by_head in _findings_of_heads(subject).items():
        elsewhere = [one[measure, column] for one in others if (measure, column) in one]
        for head, finding in by_head.items():
            there = [one[head] for one in elsewhere if head in one]
            if there and all(finding.is_beyond(one) for one in there):
                found.setdefault(measure, set()).add(head)
    for measure, heads in found.items():
        yield OnlyIn(measure=measure, subject=subject.name, heads=tuple(sorted(heads)))


def _findings_of_heads(subject: Subject) -> dict[tuple[str, str], dict[HeadId, _Finding]]:
    """Return what holds of the heads that the subject still has."""
    return {
        measure: {head: finding for head, finding in by_head.items() if head in subject.heads}
        for measure, by_head in _findings(subject).items()
    }
