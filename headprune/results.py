"""What ``prune`` found out, as one value: ``results.json``."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from headprune.artefact import (
    Artefact,
    EvalResult,
    Heal,
    LoadMethod,
    Proof,
    Reconstruct,
    read_artefact,
)
from headprune.config.checks import PRUNE
from headprune.errors import CheckpointError
from headprune.fate import RoleFates
from headprune.heads import HeadName
from headprune.tasks.catalogue import is_logarithmic
from headprune.untrusted.documents import read_json


class Results(Artefact):
    """What became of a model, ``results.json``: sizes and proofs always, quality where it was measured.

    Args:
        heads: Number of heads, before and after.
        parameters: Number of parameters, before (None where that isn't known any more) and after.
        proofs: What was proven, with the numbers.
        weights_bytes: Size of the weights on disk, before (None as above) and after.
        removed: Names of the heads that were removed in this run.
        roles: Which heads of every role were removed and kept; None where no roles are known.
        loads_with: ``stock`` or ``remote-code``.
        auto_class: The ``AutoModel...`` class that loads it.
        before: The model as it was; None where no data was read.
        after: The smaller model, on the same rows.
        difference: ``after - before`` of the metric.
        difference_interval: 95 % bootstrap interval of the paired difference.
        streamed: Whether the weights went from file to file, and the model was never loaded.
        calibration: What the scores were computed on.
        reconstruct: What refitting the output projections did, where that was asked for.
        heal: What healing did; where no head was removed in this run, before and after are those of the same heads.
        cut: The smaller model before it was healed, on the same rows; None where it wasn't cut and healed.
        cut_difference: ``cut - before`` of the metric.
        cut_difference_interval: 95 % bootstrap interval of that paired difference.
    """

    written_by = "prune"

    heads: tuple[int, int]
    parameters: tuple[int | None, int]
    proofs: tuple[Proof, ...]
    weights_bytes: tuple[int | None, int]
    removed: tuple[str, ...]
    roles: RoleFates | None = None
    loads_with: LoadMethod
    auto_class: str
    before: EvalResult | None = None
    after: EvalResult | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    streamed: bool = False
    calibration: dict[str, Any] = {}
    reconstruct: Reconstruct | None = None
    heal: Heal | None = None
    cut: EvalResult | None = None
    cut_difference: float | None = None
    cut_difference_interval: tuple[float, float] | None = None

    @property
    def is_worse(self) -> bool:
        """Whether the smaller model is worse by more than noise."""
        ends, after = self.difference_interval, self.after
        if ends is None or after is None:
            return False
        return ends[1] < 0 if after.higher_is_better else ends[0] > 0

    @model_validator(mode="before")
    @classmethod
    def _with_sizes(cls, value: Any) -> Any:
        """Take sizes from what was measured, where an earlier version wrote them there alone."""
        if isinstance(value, dict) and isinstance(value.get("before"), dict):
            both = value["before"], value.get("after") or {}
            sizes = {name: [one.get(name) for one in both] for name in ("heads", "parameters")}
            return {**sizes, **value}
        return value


def read_result(path: Path) -> EvalResult:
    """Read the result of ``eval --json``, or what ``prune`` measured after pruning, from a file.

    Raises:
        CheckpointError: It is neither, or nothing was measured.
    """
    if "after" not in read_json(path, hint="write it again: headprune eval --json"):
        return read_artefact(EvalResult, path)
    after = read_artefact(Results, path).after
    if after is None:
        raise CheckpointError(
            "quality was not measured when this model was made",
            where=str(path),
            hint="measure it: headprune eval MODEL --data FILE --json",
        )
    return after


class SurveyedSite(BaseModel):
    """One attention, as ``inspect`` tells of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    kind: str
    heads: tuple[str, ...]
    key_value_heads: int
    head_dim: int
    execution: str
    min_heads: int


class Survey(Artefact):
    """What could be pruned of a model, what can't and why, how it would load, what it would save."""

    written_by = "inspect"

    model_type: str
    architecture: str
    num_heads: int
    parameters: int
    sites: tuple[SurveyedSite, ...]
    refused: dict[str, str]
    pruned_before: dict[str, Any] = {}
    loads_with: dict[str, LoadMethod | None] = {}
    saves: dict[str, Any] = {}


class SweepPoint(BaseModel):
    """One cut, measured in memory: the removed heads masked, and on the curve ``prune`` what is left reconstructed.

    Args:
        keep: The keep ratio that was asked for.
        share: What it came to: the share of the heads that stay, of those that may go.
        heads: Number of heads that stay, of all.
        removed: The heads that are silent.
        parameters: Number of parameters that are left when they are cut; None in documents of earlier versions.
        latency_ms: An estimate of how long a forward then takes, see ``Sweep.latency``; None where nothing was timed.
        value: The metric.
        interval: Its 95 % bootstrap interval.
        difference: What it is more than that of the whole model.
        difference_interval: 95 % bootstrap interval of the paired difference.
        loss: Mean over the examples of the task's loss.
        loss_standard_error: Of that mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: float
    share: float
    heads: int
    removed: tuple[HeadName, ...]
    parameters: int | None = None
    latency_ms: float | None = None
    value: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    loss: float
    loss_standard_error: float


class Curve(BaseModel):
    """The cuts that one method's scores make, from all heads to the fewest; or those that ``prune`` makes.

    Args:
        method: How the heads were scored.
        steps: In how many steps.
        reconstruct: How what is left was reconstructed, as ``prune --reconstruct`` says it; None on curves of scores alone.
        scored_on: Number of calibration rows that it read.
        points: The cuts.
        knee: Keep ratio of the knee, see :func:`headprune.planning.constraints.knee`; None where the curve has none.
        within_drop: The smallest keep ratio down to which no drop goes beyond the limit, see
            :func:`headprune.planning.constraints.last_within`; None where none was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    steps: int = 1
    reconstruct: str | None = None
    scored_on: int
    points: tuple[SweepPoint, ...]
    knee: float | None
    within_drop: float | None

    @property
    def name(self) -> str:
        """What it is called: ``prune``, or its method."""
        return self.method if self.reconstruct is None else PRUNE

    def at(self, keep: float) -> SweepPoint:
        """The point of this keep ratio."""
        return next(point for point in self.points if point.keep == keep)


class Sweep(Artefact):
    """What ``sweep`` measured: the metric against the share of heads kept, method by method (Michel et al. 2019, figure 3).

    ``data`` are the rows that report, ``calibration`` those that chose; no input is in both. ``seed`` is that of the scores, the
    rows drawn, and the bootstrap; ``objective`` and ``normalize`` are the scores'. Every curve begins with the whole model.
    ``latency`` says what was timed for the points' estimates, and holds the table that they are read from.
    """

    written_by = "sweep"

    metric: str
    higher_is_better: bool
    n: int
    num_heads: int
    max_drop: float | None
    curves: tuple[Curve, ...]
    constraints: dict[str, Any]
    objective: str
    normalize: str
    limit: int | None
    seed: int
    latency: dict[str, Any] = {}
    calibration: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]

    @property
    def whole(self) -> SweepPoint:
        """The whole model."""
        return self.curves[0].points[0]

    @property
    def is_logarithmic(self) -> bool:
        """Whether the metric is an exponential of a mean, so that its logarithm is what is drawn and looked at."""
        return is_logarithmic(self.metric)
