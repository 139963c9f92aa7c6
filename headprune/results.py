"""What ``prune`` found out, as one value: ``results.json``."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headprune.checkpoint import Route
from headprune.evaluation import EvalResult
from headprune.heads import Artefact, read_artefact
from headprune.healing import Heal
from headprune.surgery import Mend
from headprune.verify import Proof


class Results(Artefact):
    """Before and after, with the proofs.

    Args:
        before: The model as it was.
        after: The pruned model, on the same rows.
        difference: ``after - before`` of the metric.
        difference_interval: 95 % bootstrap interval of the paired difference.
        proofs: What was proven, with the numbers.
        weights_bytes: Size of the weights on disk, before and after.
        removed: Names of the heads that went in this run.
        loads_with: ``stock`` or ``remote-code``.
        auto_class: The ``AutoModel...`` class that loads it.
        calibration: What the scores were computed on.
        mend: What refitting the output projections did, where that was asked for.
        heal: What healing did; before and after are then those of the same heads.
    """

    written_by = "prune"

    before: EvalResult
    after: EvalResult
    difference: float
    difference_interval: tuple[float, float]
    proofs: tuple[Proof, ...]
    weights_bytes: tuple[int, int]
    removed: tuple[str, ...]
    loads_with: str
    auto_class: str
    calibration: dict[str, Any] = {}
    mend: Mend | None = None
    heal: Heal | None = None


class Unmeasured(Artefact):
    """What ``prune --stream`` did and proved, ``proofs.json``: no data was read, so no quality is told.

    Args:
        heads: Number of heads, before and after.
        parameters: Number of parameters, before and after.
        proofs: What was proven, with the numbers.
        weights_bytes: Size of the weights on disk, before and after.
        removed: Names of the heads that went in this run.
        loads_with: ``stock`` or ``remote-code``.
        auto_class: The class of transformers that loads it.
        streamed: Whether the weights went from file to file; where their names didn't allow it, the model was loaded.
        calibration: What the scores were computed on.
    """

    written_by = "prune --stream"

    heads: tuple[int, int]
    parameters: tuple[int, int]
    proofs: tuple[Proof, ...]
    weights_bytes: tuple[int, int]
    removed: tuple[str, ...]
    loads_with: str
    auto_class: str
    streamed: bool
    calibration: dict[str, Any] = {}


def read_result(path: Path) -> EvalResult:
    """Read the result of ``eval --json``, or what ``prune`` measured after pruning, from a file.

    Raises:
        CheckpointError: It is neither.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = {}
    if isinstance(content, dict) and "after" in content:
        return read_artefact(Results, path).after
    return read_artefact(EvalResult, path)


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
    loads_with: dict[str, Route | None] = {}
    saves: dict[str, Any] = {}
