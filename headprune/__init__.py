"""Score every attention head of a transformer, prune the ones that don't matter, prove it, save a smaller model.

The names below load on first use, so that ``import headprune`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headprune.api import inspect, load, masked, plan, prune, save, score
    from headprune.config import Constraints
    from headprune.heads import HeadId
    from headprune.plans import HeadScores, PruningPlan

__all__ = [
    "Constraints",
    "HeadId",
    "HeadScores",
    "PruningPlan",
    "inspect",
    "load",
    "masked",
    "plan",
    "prune",
    "save",
    "score",
]

_HOMES = {
    "Constraints": "headprune.config",
    "HeadId": "headprune.heads",
    **dict.fromkeys(("HeadScores", "PruningPlan"), "headprune.plans"),
    **dict.fromkeys(
        ("inspect", "load", "masked", "plan", "prune", "save", "score"), "headprune.api"
    ),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("headprune")
    if name not in _HOMES:
        raise AttributeError(f"module 'headprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
