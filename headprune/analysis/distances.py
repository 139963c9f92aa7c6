"""What is seen in distances: a map in two dimensions, and clusters."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

_MOST_CLUSTERS = 12


def scaled(squares: NDArray[np.float64]) -> tuple[tuple[tuple[float, float], ...], float]:
    """Return a map in two dimensions by classical scaling (Torgerson 1952), and the share of the squared distances that it shows.

    Args:
        squares: Squared distances [heads, heads].
    """
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    values = np.clip(values, 0, None)
    places = vectors[:, :-3:-1] * np.sqrt(values[:-3:-1])
    # The sign of a dimension is nobody's choice: its largest number is positive.
    places *= np.sign(places[np.abs(places).argmax(0), range(places.shape[1])] + 1e-300)
    explained = float(values[-2:].sum() / max(values.sum(), 1e-300))
    return tuple((float(x), float(y)) for x, y in places), explained


def clustered(distances: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the cluster of every head, by the linkage of Ward (1963); as many as make the mean silhouette largest.

    Args:
        distances: Distances [heads, heads].
    """
    tree = linkage(squareform(distances, checks=False), method="ward")
    most = min(_MOST_CLUSTERS, len(distances) - 1)
    cuts = [fcluster(tree, count, criterion="maxclust") for count in range(2, most + 1)]
    several = [labels for labels in cuts if len(set(labels.tolist())) > 1]
    if not several:
        return (1,) * len(distances)
    return tuple(max(several, key=lambda labels: _silhouette(distances, labels)).tolist())


def _silhouette(distances: NDArray[np.float64], labels: NDArray[np.int32]) -> float:
    """Return the mean silhouette: how much nearer heads are to their own cluster than to the next; 0 for a cluster of one."""
    members = np.stack([labels == label for label in np.unique(labels)])
    sums, sizes = distances @ members.T, members.sum(1)
    own = members.T
    inside = sums[own] / np.maximum(1, sizes[labels - 1] - 1)
    outside = np.where(own, np.inf, sums / sizes).min(1)
    widths = (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-300)
    alone = sizes[labels - 1] == 1
    return float(np.where(alone, 0.0, widths).mean())
