"""The only place where stages meet: settings in, values out; each function is one command."""

from headprune.workflows.commands import evaluate, export, plan, prune, score
from headprune.workflows.streaming import is_too_large, plan_unloaded, prune_unloaded
from headprune.workflows.survey import convert, survey
from headprune.workflows.sweep import sweep

__all__ = [
    "convert",
    "evaluate",
    "export",
    "is_too_large",
    "plan",
    "plan_unloaded",
    "prune",
    "prune_unloaded",
    "score",
    "survey",
    "sweep",
]
