"""What compares predictions with references, and the one bootstrap that gives intervals and standard errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headprune.errors import DataError
from headprune.tasks.catalogue import MetricRow

Numbers = NDArray[np.float64]
Compute = Callable[..., float]

RESAMPLES = 1000
_MAX_SECONDS = 12.0


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
        classes: The model's classes: a class neither predicted nor in the references counts as 0. None stands for the
            references' classes.
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
    """``exp(sum of negative log-likelihoods / number of tokens)``, of the sum and the number of each window."""
    mean = float(predictions.sum() / references.sum())
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that is ready to be computed.

    Args:
        row: What is known of it.
        compute: ``(predictions, references) -> value``, [examples] each.
    """

    row: MetricRow
    compute: Compute

    @property
    def name(self) -> str:
        """What it is called."""
        return self.row.name

    @property
    def higher_is_better(self) -> bool:
        """Which direction is better."""
        return self.row.higher_is_better

    def for_classes(self, classes: Sequence[float]) -> "Metric":
        """Return the same over these classes, whichever of them occur in the rows that it is given."""
        if not self.row.by_class or isinstance(self.compute, partial):
            return self
        return replace(self, compute=partial(self.compute, classes=classes))

    def or_nan(self, predictions: Numbers, references: Numbers) -> float:
        """Return the metric; nan where it is undefined, as on some resamples."""
        try:
            return self.compute(predictions, references)
        except UndefinedMetricError:
            return math.nan

    def num_resamples(self, seconds: float, *, largest: int, smallest: int) -> int:
        """Return how many resamples a dozen seconds allow where the metric isn't built in, and one takes ``seconds``."""
        if self.row.function:
            return largest
        return max(smallest, min(largest, int(_MAX_SECONDS / max(seconds, 1e-9))))


def bootstrap(
    compute: Callable[[NDArray[np.int64]], float | Numbers], n: int, *, seed: int, resamples: int
) -> Numbers:
    """Return a function's values on resamples of ``n`` examples, drawn with replacement (Efron 1979).

    Args:
        compute: From the indices of the drawn examples, [n], to a number or an array of numbers.
        n: How many examples there are.
        seed: Of the draws.
        resamples: How many of them.

    Returns:
        [resamples, ...].
    """
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(compute(rng.integers(0, n, n))) for _ in range(resamples)])


def interval(
    metric: Metric,
    predictions: Sequence[Numbers],
    references: Numbers,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval over examples of a metric, or of the difference of two.

    Two sets of predictions are resampled together, so that their interval is that of the paired difference. The classes are
    the same in every resample, whichever occur in it. A metric that isn't built in may be undefined on some resamples.

    Raises:
        DataError: There are fewer than two examples, or the metric is undefined on most resamples.
    """
    n = len(references)
    if n < 2:
        raise DataError(
            "an interval needs at least 2 examples, and there is 1",
            where="evaluation data",
            hint="give more rows",
        )
    metric = metric.for_classes(np.unique(references).tolist())

    def value(rows: NDArray[np.int64]) -> float:
        values = [metric.or_nan(one[rows], references[rows]) for one in predictions]
        return values[0] - sum(values[1:])

    values = bootstrap(value, n, seed=seed, resamples=resamples)
    if np.isnan(values).mean() > 0.5:
        raise DataError(
            f"{metric.name} is not defined on most samples of these {n} examples",
            where="evaluation data",
            hint="give more rows, or another `metric`",
        )
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
