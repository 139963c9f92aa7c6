"""Score every attention head of a transformer, prune the ones that don't matter, prove it, save a smaller model.

The names below load on first use, so that ``import headprune`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headprune.analysis.roles import Roles
    from headprune.api import (
        analyze,
        inspect,
        load,
        masked,
        plan,
        prune,
        save,
        score,
        shrink,
    )
    from headprune.config import AnalyzeSpec, Constraints, ScoreSpec, Settings
    from headprune.heads import HeadId
    from headprune.plans import HeadScores, PruningPlan

_HOMES = {
    "headprune.analysis.roles": ("Roles",),
    "headprune.api": (
        "analyze",
        "inspect",
        "load",
        "masked",
        "plan",
        "prune",
        "save",
        "score",
        "shrink",
    ),
    "headprune.config": ("AnalyzeSpec", "Constraints", "ScoreSpec", "Settings"),
    "headprune.heads": ("HeadId",),
    "headprune.plans": ("HeadScores", "PruningPlan"),
}

__all__ = [
    "AnalyzeSpec",
    "Constraints",
    "HeadId",
    "HeadScores",
    "PruningPlan",
    "Roles",
    "ScoreSpec",
    "Settings",
    "__version__",
    "analyze",
    "inspect",
    "load",
    "masked",
    "plan",
    "prune",
    "save",
    "score",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("headprune")
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'headprune' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
