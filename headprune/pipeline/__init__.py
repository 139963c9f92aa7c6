"""The only place where stages meet: settings in, values out; each function is one command."""

from headprune.pipeline.commands import evaluate, export, look, plan, prune, score

__all__ = ["evaluate", "export", "look", "plan", "prune", "score"]
