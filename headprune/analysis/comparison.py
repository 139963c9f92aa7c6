"""What comes of a comparison, as a document. Knows no model, imports no torch."""

from pydantic import BaseModel, ConfigDict

from headprune.artefact import Artefact
from headprune.heads import HeadName

BINS = 5
"""Parts of equal width that the relative depth, from 0 to 1, is divided into."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Compared(_Value):
    """One of what is compared.

    Args:
        name: Its name.
        model: Its model's name.
        data: The names of its rows, and how many there are.
        heads: How many heads it has.
    """

    name: str
    model: str
    data: dict[str, int]
    heads: int


class Profile(_Value):
    """One measure by relative depth: ``layer / (layers - 1)``, in :data:`BINS` parts of equal width.

    Args:
        measure: A role: the share of heads that have it. Or ``importance:METHOD``: the mean rank of heads, from 0, the least
            important of the model, to 1.
        subject: Whose.
        part: The kind of attention, such as ``decoder.cross``; empty in a model of one stack.
        heads: How many heads are in each part.
        values: The measure in each; None where there is no head.
        overall: The measure over all depths.
    """

    measure: str
    subject: str
    part: str
    heads: tuple[int, ...]
    values: tuple[float | None, ...]
    overall: float


class Correlation(_Value):
    """Spearman's rank correlation of a number of the same heads in two subjects.

    Args:
        measure: A role, or ``importance:METHOD``.
        first: One subject.
        second: The other.
        heads: How many heads both have.
        value: The correlation; None where one side is constant, or there are fewer than two heads.
        interval: Its 95 % interval: ``tanh(atanh(r) -/+ 1.96 sqrt((1 + r^2 / 2) / (heads - 3)))`` (Bonett and Wright 2000); None
            for fewer than four heads. It treats heads as a sample of independent ones.
    """

    measure: str
    first: str
    second: str
    heads: int
    value: float | None
    interval: tuple[float, float] | None


class Lost(_Value):
    """Heads that the first subject has and the second hasn't.

    Args:
        first: The one.
        second: The other.
        heads: The heads.
        roles: Those of them that have each role in the first.
        having: How many heads have that role in the first.
    """

    first: str
    second: str
    heads: tuple[HeadName, ...]
    roles: dict[str, tuple[HeadName, ...]] = {}
    having: dict[str, int] = {}


class OnlyIn(_Value):
    """Heads of which something holds in one subject, and of which it holds in no other that has the same heads.

    Args:
        measure: A role, or ``importance:METHOD``.
        subject: The subject.
        heads: For a role: heads that have it here and haven't it elsewhere, with intervals that don't overlap. For importance:
            heads whose whole 95 % interval lies above the mean of all heads here, and below that mean elsewhere.
    """

    measure: str
    subject: str
    heads: tuple[HeadName, ...]


class Comparison(Artefact):
    """What roles and scores of several models, or on several sets of rows, have in common.

    ``different`` says which two subjects haven't the same heads, and why: these are compared by depth alone.
    """

    written_by = "compare"

    subjects: tuple[Compared, ...]
    profiles: tuple[Profile, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    lost: tuple[Lost, ...] = ()
    only_in: tuple[OnlyIn, ...] = ()
    different: dict[str, str] = {}
