"""How alike heads are, as a document. Knows no model, imports no torch."""

from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from headprune.artefact import Artefact
from headprune.heads import HeadId, HeadName

SMOOTHING = 0.001
"""Share of every head's attention that is spread evenly over the keys before heads are compared, as Clark et al.'s code does."""


class Compared(BaseModel):
    """Heads that look from the same texts at the same texts, compared with each other.

    Args:
        heads: The heads.
        divergences: Row i: the divergences of head i from heads 0 to i - 1, in nats; at most ln 2.
        errors: Their standard errors; None where there is one example.
        queries: How many queries each is a mean of.
        examples: How many examples these come from.
        positions: Where each head lies on a map of two dimensions.
        explained: The share of the squared distances that the map shows.
        clusters: Which cluster each head belongs to, from 1 on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    heads: tuple[HeadName, ...]
    divergences: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float | None, ...], ...]
    queries: int
    examples: int
    positions: tuple[tuple[float, float], ...]
    explained: float
    clusters: tuple[int, ...]

    def divergence(self, one: HeadId, other: HeadId) -> tuple[float, float | None]:
        """Return the divergence of two heads, and its standard error."""
        high, low = sorted((self.heads.index(one), self.heads.index(other)), reverse=True)
        return self.divergences[high][low], self.errors[high][low]

    def by_cluster(self) -> dict[int, tuple[HeadId, ...]]:
        """Return the heads of each cluster, in the model's order."""
        return {
            number: tuple(
                head for head, own in zip(self.heads, self.clusters, strict=True) if own == number
            )
            for number in sorted({*self.clusters})
        }

    def median(self) -> float:
        """Return the median divergence of all pairs: what is usual."""
        return median(value for row in self.divergences for value in row)


class Pair(BaseModel):
    """How alike two heads are.

    Args:
        head: A head; where a plan removes some, a removed one.
        nearest: The head that is nearest to it; there, of the kept ones.
        divergence: Their divergence, in nats.
        low: Lower end of its 95 % interval; None where there is one example.
        high: Upper end.
        closer_than: The share of all pairs that are further apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    head: HeadName
    nearest: HeadName
    divergence: float
    low: float | None
    high: float | None
    closer_than: float


class Similarity(Artefact):
    """How alike the heads of a model are, with what it was measured on.

    ``closest`` are the pairs that are most alike; ``successors``, where a plan removes heads, the nearest kept one of each.
    """

    written_by = "analyze"

    groups: tuple[Compared, ...]
    closest: tuple[Pair, ...]
    successors: tuple[Pair, ...] = ()
    smoothing: float = SMOOTHING
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}
