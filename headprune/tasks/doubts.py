"""What a model's own predictions make doubtful of the labels that it is measured by."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from headprune.artefact import Z_95
from headprune.tasks.metrics import Numbers, spearman

_UNLIKELY = 0.001
_FEWEST = 8
_FEW = 4


def doubts_of_classes(
    predictions: Numbers, references: Numbers, names: Mapping[int, str]
) -> tuple[str, ...]:
    """Return a remark on labels by which a model is below chance, or better if they were in another order.

    Below chance: the 95 % interval (Wilson 1927) of the share that is right lies below one in as many as there are classes.
    Another order: the assignment of labels to classes that is best on one half of the rows is better on the other half, too, by
    a sign test on the rows on which the two differ.
    """
    predicted, true = predictions.astype(int), references.astype(int)
    count = len(true)
    if count < _FEWEST or len(names) < 2:
        return ()
    share, chance = float((predicted == true).mean()), 1 / len(names)
    doubts: list[str] = []
    if _upper_end(share, count) < chance:
        doubts.append(
            f"{share:.1%} of {count:,} rows are right, which is below chance ({chance:.1%}): "
            "are these the labels of this model?"
        )
    best = _assignment(predicted, true)
    moved = {label: index for label, index in best.items() if label != index}
    if moved and _is_better_elsewhere(predicted, true):
        right = float((predicted == _mapped(true, best)).mean())
        shown = ", ".join(
            f"{names.get(label, label)!r} as {names.get(index, index)!r}"
            for label, index in list(moved.items())[:_FEW]
        )
        from_one = all(label == index + 1 for label, index in moved.items() if index in best)
        cause = "they seem to count from 1" if from_one else "another order of the classes?"
        doubts.append(
            f"{right:.1%} of {count:,} rows would be right instead of {share:.1%} if labels were permuted "
            f"({shown}{', ...' if len(moved) > _FEW else ''}): {cause}"
        )
    return tuple(doubts)


def doubts_of_numbers(
    predictions: Numbers, references: Numbers, *, same_scale: bool
) -> tuple[str, ...]:
    """Return a remark on numbers that fall as the model's rise, or that lie on another scale."""
    count = len(references)
    if count < _FEWEST:
        return ()
    doubts: list[str] = []
    rank = spearman(predictions, references)
    if (abs(rank) < 1 and math.atanh(rank) + Z_95 / math.sqrt(count - 3) < 0) or rank <= -1:
        doubts.append(
            f"the model's numbers fall as the data's rise (Spearman {rank:.2f} on {count:,} rows), which is below chance: "
            "are they distances, or ranks?"
        )
    squares = (predictions - references) ** 2
    error = float(squares.std(ddof=1)) / math.sqrt(count)
    if same_scale and float(squares.mean()) - Z_95 * error > float(references.var()):
        doubts.append(
            f"the model's numbers are on another scale than the data's ({predictions.mean():.3g} and {references.mean():.3g} in "
            "the mean), and the loss takes both as they are; the objective distill needs none of the data's"
        )
    return tuple(doubts)


def _upper_end(share: float, count: int) -> float:
    """Return the upper end of the 95 % interval of a share (Wilson 1927)."""
    square = Z_95 * Z_95
    middle = share + square / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (middle + half) / (1 + square / count)


def _assignment(predicted: NDArray[np.int_], true: NDArray[np.int_]) -> dict[int, int]:
    """Return which class each label would have to be for the most rows to be right; its own class if several are equally good."""
    classes = np.union1d(predicted, true)
    index_of = {int(label): index for index, label in enumerate(classes)}
    seen = np.eye(len(classes)) / 2
    np.add.at(seen, ([index_of[int(t)] for t in true], [index_of[int(s)] for s in predicted]), 1)
    rows, columns = linear_sum_assignment(seen, maximize=True)
    return {int(classes[r]): int(classes[c]) for r, c in zip(rows, columns, strict=True)}


def _mapped(true: NDArray[np.int_], assignment: Mapping[int, int]) -> NDArray[np.int_]:
    return np.array([assignment.get(int(label), int(label)) for label in true])


def _is_better_elsewhere(predicted: NDArray[np.int_], true: NDArray[np.int_]) -> bool:
    """Whether what each half of the rows says of the other is clearly better than the labels as they are."""
    order = np.random.default_rng(0).permutation(len(true))
    halves = order[::2], order[1::2]
    wins = losses = 0
    for fit, test in (halves, halves[::-1]):
        moved = _mapped(true[test], _assignment(predicted[fit], true[fit])) == predicted[test]
        kept = true[test] == predicted[test]
        wins, losses = wins + int((moved & ~kept).sum()), losses + int((kept & ~moved).sum())
    decided = wins + losses
    return decided > 0 and bool(binomtest(wins, decided, alternative="greater").pvalue < _UNLIKELY)
