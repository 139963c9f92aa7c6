"""The only place where stages meet: settings in, values out; each function is one command."""

from headprune.pipeline.commands import evaluate, export, plan, prune, score
from headprune.pipeline.survey import convert, survey

__all__ = ["convert", "evaluate", "export", "plan", "prune", "score", "survey"]
