"""Metrics that need no network, which way is better and what they compare; their intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headprune.errors import ConfigError, DataError, did_you_mean

Numbers = NDArray[np.float64]

Predicted = Literal["classes", "numbers", "likelihoods"]
"""What tasks predict, and metrics compare."""

RESAMPLES = 1000
_MOST_SECONDS = 12.0
_WAYS = {True: "higher", False: "lower"}


class UndefinedMetricError(DataError):
    """A metric that isn't built in failed on some rows."""


def spearman(predictions: Numbers, references: Numbers) -> float:
    """Rank correlation, ties by their mean rank (Spearman 1904)."""
    return pearson(stats.rankdata(predictions), stats.rankdata(references))


def pearson(predictions: Numbers, references: Numbers) -> float:
    """Linear correlation; nan where one side is constant."""
    x, y = predictions - predictions.mean(), references - references.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else math.nan


def accuracy(predictions: Numbers, references: Numbers) -> float:
    """Share of predictions that equal their reference."""
    return float((predictions == references).mean())


def f1(predictions: Numbers, references: Numbers, classes: Sequence[float] | None = None) -> float:
    """F1 of class 1 where a model has two classes, else the unweighted mean over its classes.

    Args:
        predictions: A class an example.
        references: A class an example.
        classes: The model's classes: one that is neither predicted nor there counts as 0. Without, those of the references.
    """
    if classes is None:
        classes = list(np.unique(references))
    elif len(classes) == 2:
        classes = classes[1:]
    return float(np.mean([_f1_of(predictions == c, references == c) for c in classes]))


def _f1_of(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    total = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / total) if total else 0.0


def matthews_correlation(predictions: Numbers, references: Numbers) -> float:
    """Multi-class Matthews correlation (Gorodkin 2004); 0 where a side is constant, as in scikit-learn."""
    classes = np.union1d(predictions, references)
    p = np.stack([predictions == c for c in classes], 1).astype(np.float64)
    r = np.stack([references == c for c in classes], 1).astype(np.float64)
    p, r = p - p.mean(0), r - r.mean(0)
    norm = math.sqrt(float((p * p).sum()) * float((r * r).sum()))
    return float((p * r).sum()) / norm if norm else 0.0


def perplexity(predictions: Numbers, references: Numbers) -> float:
    """``exp(sum of negative log-likelihoods / number of tokens)``.

    Args:
        predictions: Summed negative log-likelihood of each window.
        references: Number of predicted tokens of each window.
    """
    mean = float(predictions.sum() / references.sum())
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Statistic:
    """A function of predictions and references.

    Args:
        name: What it is called.
        compute: ``(predictions, references) -> value``.
        higher_is_better: Which way is better.
        takes: What it compares.
        by_class: Whether it looks at one class after the other, so that it must be told which there are.
    """

    name: str
    compute: Callable[[Numbers, Numbers], float]
    higher_is_better: bool
    takes: Predicted
    by_class: bool = False

    def context(self, classes: Sequence[float]) -> "Statistic":
        """Return the same over these classes, whichever of them occur in the rows that it is given."""
        if not self.by_class:
            return self
        compute: Callable[..., float] = self.compute
        return replace(self, compute=partial(compute, classes=classes), by_class=False)

    def or_nan(self) -> "Statistic":
        """Return the same for resamples: on some of them it may be undefined, and is no number."""

        def compute(predictions: Numbers, references: Numbers) -> float:
            try:
                return self.compute(predictions, references)
            except UndefinedMetricError:
                return math.nan

        return replace(self, compute=compute)


BUILT_IN: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic("spearman", spearman, True, "numbers"),
        Statistic("pearson", pearson, True, "numbers"),
        Statistic("accuracy", accuracy, True, "classes"),
        Statistic("f1", f1, True, "classes", by_class=True),
        Statistic("matthews_correlation", matthews_correlation, True, "classes"),
        Statistic("perplexity", perplexity, False, "likelihoods"),
    )
}


def load_metric(
    name: str,
    *,
    higher_is_better: bool | None = None,
    predicted: Predicted | None = None,
    classes: int | None = None,
) -> Statistic:
    """Return a metric by name: a built-in one, or one that :func:`evaluate.load` knows (a hub id or a path).

    Args:
        name: The metric.
        higher_is_better: Which way is better; must be said for metrics that aren't built in.
        predicted: What it will be given; one that isn't built in is tried on a few such rows.
        classes: How many classes the model has, where it predicts classes.

    Raises:
        ConfigError: The metric isn't known, or its direction isn't, or isn't what is said; it takes something else, or fails.
    """
    if name in BUILT_IN:
        statistic = BUILT_IN[name]
        if higher_is_better not in (None, statistic.higher_is_better):
            true, given = _WAYS[statistic.higher_is_better], _WAYS[not statistic.higher_is_better]
            raise ConfigError(
                f"of {name} {true} is better, and the settings say that {given} is",
                where=f"--metric {name} --{given}-is-better",
                hint=f"leave --{given}-is-better out, or choose another --metric",
            )
    elif higher_is_better is None:
        raise ConfigError(
            f"{name!r} is no built-in metric, and it isn't said which way it is better",
            where="--metric",
            hint=f"add --higher-is-better or --lower-is-better; built in: {did_you_mean(name, BUILT_IN)}",
        )
    else:
        from headprune.tasks.custom_metrics import load_custom_metric

        compute, takes = load_custom_metric(name, predicted=predicted, classes=classes)
        statistic = Statistic(name, compute, higher_is_better, takes)
    if predicted is not None and statistic.takes != predicted:
        raise ConfigError(
            f"{name} compares {statistic.takes}, and the task predicts {predicted}",
            where=f"--metric {name}",
            hint=f"metrics of {predicted}: "
            + ", ".join(known.name for known in BUILT_IN.values() if known.takes == predicted),
        )
    return statistic.context(tuple(map(float, range(classes)))) if classes else statistic


def difference(statistic: Statistic, predictions: Sequence[Numbers], references: Numbers) -> float:
    """Return the metric of the first predictions, less that of the second where there are two."""
    values = [statistic.compute(one, references) for one in predictions]
    return values[0] - sum(values[1:])


def affordable(statistic: Statistic, seconds: float, *, most: int, fewest: int) -> int:
    """Return how many resamples an interval is made of: as many as a dozen seconds allow where a metric isn't built in.

    Args:
        statistic: The metric.
        seconds: What one of them takes.
        most: As many as there would be.
        fewest: As many as there must be.
    """
    if statistic.name in BUILT_IN:
        return most
    return max(fewest, min(most, int(_MOST_SECONDS / max(seconds, 1e-9))))


def interval(
    statistic: Statistic,
    predictions: Sequence[Numbers],
    references: Numbers,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval over examples (Efron 1979) of :func:`difference`.

    Two sets of predictions are resampled together, so that their interval is that of the paired difference. The classes are
    the same in every resample, whichever occur in it. A metric that isn't built in may be undefined on some resamples.

    Raises:
        DataError: There are fewer than two examples, or the metric is undefined on most resamples.
    """
    if len(references) < 2:
        raise DataError(
            "an interval needs at least 2 examples, and there is 1",
            where="evaluation data",
            hint="give more rows",
        )
    statistic = statistic.context(np.unique(references).tolist()).or_nan()
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for index in range(resamples):
        rows = rng.integers(0, len(references), len(references))
        values[index] = difference(statistic, [p[rows] for p in predictions], references[rows])
    if np.isnan(values).mean() > 0.5:
        raise DataError(
            f"{statistic.name} is not defined on most samples of these {len(references)} examples",
            where="evaluation data",
            hint="give more rows, or another --metric",
        )
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
