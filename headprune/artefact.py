"""What stages measure, as values and as JSON documents: how these are written, and read back whole. Nothing heavy is imported."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from headprune.errors import CheckpointError
from headprune.untrusted.documents import read_json

Z_95 = 1.96
"""So many standard errors are half of a 95 % interval."""

_CHECKSUM = "sha256"
# Keys of documents as they were called before 0.1.0.
_EARLIER = {
    "mend": "reconstruct",
    "mended": "reconstructed",
    "unmended": "without_reconstruction",
    "how": "method",
}


class Artefact(BaseModel):
    """A value that lies on disk as one JSON document with a ``format`` number, and a checksum of all the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    written_by: ClassVar[str]
    """The command that writes it."""

    format: Literal[1] = 1

    @model_validator(mode="wrap")
    @classmethod
    def _as_it_was_written(cls, value: Any, handler: Callable[[Any], "Artefact"]) -> "Artefact":
        """Take a document without a checksum as it is."""
        checksum = value.get(_CHECKSUM) if isinstance(value, dict) else None
        if checksum is None:
            return handler(_renamed(value))
        rest = {name: part for name, part in value.items() if name != _CHECKSUM}
        artefact = handler(_renamed(rest))
        if checksum != _checksum(rest):
            raise ValueError(
                f"it was changed after it was written (if you changed it yourself, take its {_CHECKSUM} out)"
            )
        return artefact

    def to_json(self) -> str:
        """Return the document: sorted keys, two-space indent, a newline at the end."""
        document = self.model_dump(mode="json")
        return dump_json({**document, _CHECKSUM: _checksum(document)})


A = TypeVar("A", bound=Artefact)


def dump_json(document: object) -> str:
    """Return ``document`` as JSON that diffs well: sorted keys, indented, newline at the end."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_artefact(kind: type[A], path: Path) -> A:
    """Read a JSON file written by :meth:`Artefact.to_json`; one without a checksum is taken as it is.

    Raises:
        CheckpointError: The file is missing, is not JSON, is not a ``kind``, or was changed since.
    """
    hint = f"write it again: headprune {kind.written_by}"
    return as_artefact(kind, read_json(path, hint=hint), path)


def as_artefact(kind: type[A], document: object, path: Path) -> A:
    """Return the value of a document that was read from ``path``, alone or with others.

    Raises:
        CheckpointError: It is not a ``kind``, or was changed since.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path.name} is not a {kind.__name__} file: {key + ': ' if key else ''}{reason}",
            where=str(path),
            hint=f"write it again: headprune {kind.written_by}",
        ) from error


class Latency(BaseModel):
    """How long a forward takes, in milliseconds.

    Args:
        ms: The median of the repeats.
        interval: Its 95 % interval, by order statistics; of fewer than six repeats their range.
        repeats: How many there were; 0 where an older file holds a number alone.
        tokens: Of each row; None where that isn't known.
        busy: Why the machine was too busy to show small differences; empty where it wasn't.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: float
    interval: tuple[float, float]
    repeats: int = 0
    tokens: int | None = None
    busy: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        """Take the number alone that older files hold."""
        if isinstance(value, int | float):
            return {"ms": value, "interval": (value, value)}
        return value

    def change_to(self, other: "Latency") -> tuple[float, tuple[float, float]]:
        """Return how much longer ``other`` takes, as a share, and an interval: from its ends to the opposite ones of this."""
        low, high = self.interval
        ends = (other.interval[0] / high - 1, other.interval[1] / low - 1)
        return other.ms / self.ms - 1, ends


def _renamed(value: Any) -> Any:
    """Return a document with the keys of today; what told that there was no race is left out."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        _EARLIER.get(name, name): _renamed(part)
        for name, part in value.items()
        if (name, part) != ("race", None)
    }


def _checksum(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a document says, whatever its spaces and the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


LoadMethod = Literal["stock", "remote-code"]

FitMethod = Literal["scale", "bias", "refit"]
DEFAULT_RECONSTRUCT: FitMethod = "refit"


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
        loss: Mean loss of those, before and after; after the training itself where nothing of it was kept.
        steps: Steps of the optimizer.
        share: How much of the way from the old weights to the trained ones was kept: what made that loss least; 0 is nothing.
        weights: Which weights were trained.
        lora: Rank of the adapters on them that were merged; None where they themselves were trained.
        data: The rows that were trained on: name, split, fingerprint, n.
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
    share: float = 1.0
    weights: Literal["all", "attention"] = "all"
    lora: int | None = None
    data: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rows: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether anything of it was kept."""
        return self.share > 0
