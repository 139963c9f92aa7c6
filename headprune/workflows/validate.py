"""Checks across sections: :func:`check_settings` needs no model, :func:`steps_fit` needs scores."""

from headprune.config import Constraints, ReconstructSpec, ScoreSpec, Settings
from headprune.config.checks import check_score, methods_of
from headprune.measured import FitMethod
from headprune.planning import target_of
from headprune.planning.constraints import as_dict
from headprune.plans import HeadScores
from headprune.runtime.distributed import World
from headprune.scoring.catalogue import DEFAULT_METHOD
from headprune.surgery import RECONSTRUCT_METHODS

FEWEST_TO_RECONSTRUCT = 8
"""Fewest calibration rows to reconstruct: some fit, the others decide."""


def method_of(score: ScoreSpec) -> str:
    """Return how heads are scored."""
    return score.method or DEFAULT_METHOD


def method_between_steps(reconstruct: ReconstructSpec, examples: int) -> FitMethod | None:
    """Return how the remaining heads are reconstructed before they are scored again: by the strongest of the methods tried.

    Args:
        reconstruct: The settings.
        examples: How many examples it is fitted on; with too few, nothing is reconstructed.
    """
    if reconstruct.reconstruct == "none" or examples < FEWEST_TO_RECONSTRUCT:
        return None
    return RECONSTRUCT_METHODS[reconstruct.reconstruct or "best"][-1]


def check_settings(
    settings: Settings, *, compares: bool = False, world: World | None = None
) -> None:
    """Refuse settings that contradict each other.

    Args:
        settings: All settings.
        compares: Whether heads are scored by every method of ``methods``; else by ``method`` alone.
        world: The processes that share the work.

    Raises:
        ConfigError: There are such settings, or a method that needs one process was started in several.
        PlanError: A target can't be read as a share or a number.
    """
    target_of(settings.plan)
    for score in methods_of(settings.score) if compares else (settings.score,):
        check_score(score, settings.plan, processes=world.size if world else 1)


def steps_fit(scores: HeadScores, settings: Settings, plan: Constraints) -> bool:
    """Whether scores were made in the steps that settings ask for; if steps is unset, scores made in steps for the same cut fit.

    Args:
        scores: The scores, made once or in steps.
        settings: How heads are scored, and reconstructed in between.
        plan: The cut that the steps lead to.
    """
    steps, made = settings.score.steps, scores.steps
    if made is None or (plan.keep is None and plan.heads is None):
        return made is None and steps in (None, 1)
    same_cut = made.heads == plan.heads if plan.keep is None else made.keep == plan.keep
    return (
        same_cut
        and (made.heads is None) == (plan.heads is None)
        and steps in (None, 1, made.count)
        and made.reconstructed == method_between_steps(settings.reconstruct, scores.n)
        and made.constraints == as_dict(plan)
    )
