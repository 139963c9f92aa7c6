"""What settings of several sections come to together, and what of that contradicts itself."""

from collections.abc import Sequence

from headprune.config import Constraints, ReconstructSpec, ScoreSpec, Settings
from headprune.distributed import World
from headprune.errors import ConfigError
from headprune.planning import target_of
from headprune.planning.constraints import as_dict
from headprune.plans import HeadScores
from headprune.scoring.catalogue import DEFAULT_METHOD, METHODS, get_method
from headprune.surgery import RECONSTRUCT_METHODS
from headprune.surgery.least_squares import FitMethod

DEFAULT_STEPS = 2
FEWEST_TO_RECONSTRUCT = 8
"""Calibration rows, so that some can fit and the others decide."""


def methods_of(score: ScoreSpec, *default: str) -> tuple[ScoreSpec, ...]:
    """Return how heads are scored, a section for each method that is compared, each method once.

    Args:
        score: The settings.
        *default: The methods where they name none.

    Raises:
        ConfigError: There is no such method.
    """
    names = dict.fromkeys(score.methods or default)
    return tuple(
        score.model_copy(update={"method": get_method(name).name, "methods": ()}) for name in names
    )


def method_of(score: ScoreSpec) -> str:
    """Return how heads are scored."""
    return score.method or DEFAULT_METHOD


def num_steps(score: ScoreSpec, plan: Constraints) -> int:
    """Return in how many steps heads are removed: as set, else a few wherever scores can be made again on what is left.

    Args:
        score: How heads are scored.
        plan: What the scores lead to.
    """
    if score.steps is not None:
        return score.steps
    has_goal = plan.keep is not None or plan.heads is not None
    at_once = plan.rearrange or score.normalize != "none" or score.objective == "metric"
    again = has_goal and not at_once and get_method(method_of(score)).rescorable
    return DEFAULT_STEPS if again else 1


def method_between_steps(reconstruct: ReconstructSpec, examples: int) -> FitMethod | None:
    """Return how what is left is reconstructed before it is scored again: the strongest of the methods that are tried.

    Args:
        reconstruct: The settings.
        examples: How many examples it is fitted on; too few, and nothing is reconstructed.
    """
    if reconstruct.reconstruct == "none" or examples < FEWEST_TO_RECONSTRUCT:
        return None
    return RECONSTRUCT_METHODS[reconstruct.reconstruct or "best"][-1]


def check_settings(settings: Settings, *, world: World | None = None) -> None:
    """Refuse what can't be done together, for every method that is compared.

    Args:
        settings: All settings.
        world: The processes that share the work.

    Raises:
        ConfigError: There are such settings, or several processes would do what one must.
        PlanError: A target is none.
    """
    target_of(settings.plan)
    for score in methods_of(settings.score, method_of(settings.score)):
        check_score(score, settings.plan, world=world)


def check_score(score: ScoreSpec, plan: Constraints, *, world: World | None = None) -> None:
    """Refuse steps that lead nowhere, and ways of scoring that a method doesn't have.

    Args:
        score: How heads are scored.
        plan: What the scores lead to.
        world: The processes that share the work.

    Raises:
        ConfigError: There are such settings, or several processes would do what one must.
    """
    method = get_method(method_of(score))
    steps = num_steps(score, plan)
    if method.one_process and world is not None and world.size > 1:
        raise ConfigError(
            f"{method.name} runs in one process, and a launcher started {world.size}",
            where=f"`method={method.name}`",
            hint="leave out torchrun or accelerate launch, or use another method",
        )
    if steps > 1 and plan.keep is None and plan.heads is None and plan.max_drop is None:
        raise ConfigError(
            "steps lead to a keep ratio or a number of heads",
            where=f"`steps={steps}`",
            hint="give `keep=0.5` or `heads=40`, for example, and leave out targets",
        )
    if steps > 1 and (not method.rescorable or score.normalize != "none"):
        raise ConfigError(
            "in steps heads are scored as they are, all that are left in one pass",
            where=f"`steps={steps}`",
            hint=f"use another method than {_names('rescorable', False)}, and leave out `normalize`",
        )
    if plan.rearrange and (steps > 1 or not method.has_products):
        raise ConfigError(
            f"{method.name} scores don't say what heads lose together"
            if steps == 1
            else "heads that are removed together are rearranged once",
            where="`rearrange`",
            hint=f"use `method` {_names('has_products', True)}, in one step",
        )
    if score.objective == "metric" and (
        "metric" not in method.objectives or steps > 1 or score.normalize != "none"
    ):
        raise ConfigError(
            "the metric itself has no slope: heads are scored by what it loses without each",
            where="`objective=metric`",
            hint="give `method=ablation`, and leave out `steps` and `normalize`",
        )


def _names(trait: str, value: bool) -> str:
    names: Sequence[str] = [row.name for row in METHODS.values() if getattr(row, trait) is value]
    return ", ".join(names)


def steps_fit(scores: HeadScores, settings: Settings) -> bool:
    """Whether scores were made in the steps that settings ask for; those that ask for none take them for their own cut.

    Args:
        scores: The scores, made once or in steps.
        settings: What asks for them.
    """
    plan, steps, made = settings.plan, settings.score.steps, scores.steps
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
