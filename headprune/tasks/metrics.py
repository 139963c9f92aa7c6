"""Metrics as ``evaluate.Metric`` values that need no network, and :func:`evaluate.load` for the rest.

Import this module late: ``evaluate`` takes seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headprune.errors import ConfigError, DataError, did_you_mean

Numbers = NDArray[np.float64]


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


def f1(predictions: Numbers, references: Numbers) -> float:
    """F1 of class 1 where there are two classes (0 and 1), else the unweighted mean over classes."""
    classes = np.union1d(predictions, references)
    wanted = [1.0] if set(classes) <= {0.0, 1.0} else list(classes)
    return float(np.mean([_f1_of(predictions == c, references == c) for c in wanted]))


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
    """A function of predictions and references, and which way is better."""

    name: str
    compute: Callable[[Numbers, Numbers], float]
    higher_is_better: bool


BUILT_IN: dict[str, Statistic] = {
    function.__name__: Statistic(function.__name__, function, function is not perplexity)
    for function in (spearman, pearson, accuracy, f1, matthews_correlation, perplexity)
}


class BuiltInMetric(evaluate.Metric):  # type: ignore[misc]
    """One of the built-in statistics as an ``evaluate.Metric``: no download, no cache file."""

    def __init__(self, statistic: Statistic) -> None:
        self.statistic = statistic
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        """Return where the library would keep files, without making it: nothing is kept."""
        return str(self._data_dir_root)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=(self.statistic.compute.__doc__ or "").strip(),
            citation="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        statistic = self.statistic
        values = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
        return {statistic.name: statistic.compute(*values)}


def load_metric(name: str, *, higher_is_better: bool | None = None) -> Statistic:
    """Return a metric by name: a built-in one, or one that :func:`evaluate.load` knows (a hub id or a path).

    Args:
        name: The metric.
        higher_is_better: Which way is better; must be said for metrics that aren't built in.

    Raises:
        ConfigError: The metric isn't known, or its direction isn't.
    """
    if name in BUILT_IN:
        metric, key = BuiltInMetric(BUILT_IN[name]), name
        higher_is_better = BUILT_IN[name].higher_is_better
    else:
        if higher_is_better is None:
            raise ConfigError(
                f"{name!r} is no built-in metric, and it isn't said which way it is better",
                where="--metric",
                hint=f"add --higher-is-better or --lower-is-better; built in: {did_you_mean(name, BUILT_IN)}",
            )
        try:
            metric = evaluate.load(name)
        except (
            Exception
        ) as error:  # evaluate raises FileNotFoundError, ConnectionError, ImportError and more
            raise ConfigError(
                f"the metric {name!r} can't be loaded: {str(error).splitlines()[0]}",
                where="--metric",
                hint=f"check the name and the network; built in: {did_you_mean(name, BUILT_IN)}",
            ) from error
        key = name.rsplit("/", 1)[-1].removesuffix(".py")

    def compute(predictions: Numbers, references: Numbers) -> float:
        result = metric.compute(predictions=predictions, references=references)
        return float(result[key] if key in result else next(iter(result.values())))

    return Statistic(name, compute, higher_is_better)


def difference(statistic: Statistic, predictions: Sequence[Numbers], references: Numbers) -> float:
    """Return the metric of the first predictions, less that of the second where there are two."""
    values = [statistic.compute(one, references) for one in predictions]
    return values[0] - sum(values[1:])


def interval(
    statistic: Statistic,
    predictions: Sequence[Numbers],
    references: Numbers,
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval over examples (Efron 1979) of :func:`difference`.

    Two sets of predictions are resampled together, so that their interval is that of the paired difference.

    Raises:
        DataError: There are fewer than two examples.
    """
    if len(references) < 2:
        raise DataError(
            "an interval needs at least 2 examples, and there is 1",
            where="evaluation data",
            hint="give more rows",
        )
    # The built-in function itself: the evaluate layer around it costs 10 ms a call, a thousand times over.
    plain = BUILT_IN.get(statistic.name, statistic)
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for index in range(resamples):
        rows = rng.integers(0, len(references), len(references))
        values[index] = difference(plain, [one[rows] for one in predictions], references[rows])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
