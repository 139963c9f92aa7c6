"""Values that stages measure and that lie on disk: documents and their parts. Nothing heavy is imported."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from headprune.artefact import Artefact, Latency

LoadMethod = Literal["stock", "remote-code"]

FitMethod = Literal["scale", "bias", "refit"]


class Measurement(Artefact):
    """A metric with everything that is needed to believe it, or to compare it with another."""

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    higher_is_better: bool
    parameters: int
    heads: int | None
    latency_ms: dict[str, Latency] = {}
    kv_cache_bytes_per_token: int | None = None
    limit: int | None = None
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}


class EvalResult(Measurement):
    """What ``eval`` measured; ``seed`` is that of the bootstrap of so many ``resamples``, and of the rows drawn."""

    written_by = "eval --json"

    seed: int
    resamples: int | None = None


class Proof(BaseModel):
    """One claim, what was measured, and whether that is within its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str


class Tried(BaseModel):
    """A method, and what was measured on rows that it didn't see.

    Args:
        method: What was solved.
        ridges: By the name of the projection, how strongly it was held to what was there.
        value: What was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FitMethod
    ridges: dict[str, float]
    value: float


class Reconstruct(BaseModel):
    """What reconstruction did, measured on calibration rows that it didn't see.

    Args:
        kept: The method that won; None where nothing was better without any reconstruction, and nothing was changed.
        fitted_on: Examples that the weights were fitted on.
        held_out: Examples that decided.
        judged_by: What they decided by: a metric, or the loss.
        without_reconstruction: Its value with the heads silent and nothing reconstructed.
        tried: All methods.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: Tried | None
    fitted_on: int
    held_out: int
    judged_by: str
    without_reconstruction: float
    tried: tuple[Tried, ...]


class Heal(BaseModel):
    """What a distillation did.

    Args:
        teacher: The model that was learned from: name, revision, fingerprint.
        objective: The loss.
        trained_on: Examples that the weights were trained on.
        held_out: Examples of the same data that weren't.
        loss: Mean loss of those, before and after.
        steps: Steps of the optimizer.
        lora: Rank of the adapters that were merged; None where all weights were trained.
        settings: Arguments of Trainer, beside its own defaults.
        rows: Hashes of all inputs that this model was ever trained on, or that chose its heads: they don't report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher: dict[str, Any]
    objective: str
    trained_on: int
    held_out: int
    loss: tuple[float, float]
    steps: int
    lora: int | None = None
    settings: dict[str, Any] = {}
    rows: tuple[str, ...] = ()
