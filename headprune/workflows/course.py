"""What a recipe asks of scores and plan, and what of that contradicts itself."""

from headprune.config import Constraints, Recipe
from headprune.errors import ConfigError
from headprune.planning import target_of
from headprune.planning.constraints import as_dict
from headprune.plans import HeadScores
from headprune.runtime.distributed import World
from headprune.scoring.catalogue import DEFAULT_METHOD, METHODS, get_method
from headprune.surgery import RECONSTRUCT_METHODS
from headprune.surgery.least_squares import FitMethod

DEFAULT_STEPS = 2
FEWEST_TO_RECONSTRUCT = 8


def constraints_of(recipe: Recipe) -> Constraints:
    """Return what a recipe says of the plan.

    Raises:
        PlanError: A target is none.
    """
    constraints = recipe.settings.plan
    target_of(constraints)
    return constraints


def method_of(recipe: Recipe) -> str:
    """Return how heads are scored."""
    return recipe.method or DEFAULT_METHOD


def by_method(recipe: Recipe, *default: str) -> dict[str, Recipe]:
    """Return for every method that a recipe compares, each once, the recipe that scores by it.

    Args:
        recipe: Its ``methods`` are compared.
        *default: What they are where it has none.

    Raises:
        ConfigError: There is no such method.
    """
    methods = recipe.methods or default
    for method in methods:
        get_method(method)
    return {
        method: recipe.model_copy(update={"method": method, "methods": ()}) for method in methods
    }


def steps_of(recipe: Recipe) -> int:
    """Return in how many steps heads go: what was said, else a few wherever scores can be made again on what is left."""
    if recipe.steps is not None:
        return recipe.steps
    leads_somewhere = recipe.keep is not None or recipe.heads is not None
    alone = recipe.rearrange or recipe.normalize != "none"
    once = not get_method(method_of(recipe)).rescorable or recipe.objective == "metric"
    return DEFAULT_STEPS if leads_somewhere and not alone and not once else 1


def reconstructed_between_steps(recipe: Recipe, examples: int) -> FitMethod | None:
    """Return how what is left is reconstructed before it is scored again: the way that takes most off, of those asked for."""
    enough = examples >= FEWEST_TO_RECONSTRUCT
    return (
        None
        if recipe.reconstruct == "none" or not enough
        else RECONSTRUCT_METHODS[recipe.reconstruct or "best"][-1]
    )


def is_tolerant(recipe: Recipe) -> bool:
    """Whether a tolerance is the budget; beside another one it is the gate's."""
    return recipe.max_drop is not None


def check_course(recipe: Recipe, *, world: World | None = None) -> None:
    """Refuse steps and budgets that lead nowhere.

    Raises:
        ConfigError: There are such steps or budgets, or several processes would train the same gates.
        PlanError: A target is none.
    """
    constraints_of(recipe)
    method = get_method(method_of(recipe))
    if method.one_process and world is not None and world.size > 1:
        raise ConfigError(
            f"{method.name} runs in one process, and a launcher started {world.size}",
            where=f"--method {method.name}",
            hint="leave out torchrun or accelerate launch, or use another method",
        )
    once = [row.name for row in METHODS.values() if not row.rescorable]
    with_products = [row.name for row in METHODS.values() if row.has_products]
    steps = steps_of(recipe)
    leads_nowhere = recipe.keep is None and recipe.heads is None and not is_tolerant(recipe)
    if steps > 1 and leads_nowhere:
        raise ConfigError(
            "steps lead to a keep ratio or a number of heads",
            where=f"--steps {steps}",
            hint="say --keep 0.5 or --heads 40, for example, and leave out targets",
        )
    if steps > 1 and (not method.rescorable or recipe.normalize != "none"):
        raise ConfigError(
            "in steps heads are scored as they are, all that are left in one pass",
            where=f"--steps {steps}",
            hint=f"use another method than {', '.join(once)}, and leave out --normalize",
        )
    if recipe.rearrange and (steps > 1 or not method.has_products):
        raise ConfigError(
            f"{method.name} scores don't say what heads lose together"
            if steps == 1
            else "heads that go together are rearranged once",
            where="--rearrange",
            hint=f"use --method {' or '.join(with_products)}, in one step",
        )
    if recipe.objective == "metric" and (
        "metric" not in method.objectives or steps > 1 or recipe.normalize != "none"
    ):
        raise ConfigError(
            "the metric itself has no slope: heads are scored by what it loses without each",
            where="--objective metric",
            hint="say --method ablation, and leave out --steps and --normalize",
        )


def steps_fit(scores: HeadScores, recipe: Recipe) -> bool:
    """Whether scores were made in the steps that a recipe asks for; one that asks for none takes those for its own cut."""
    if scores.steps is None or (recipe.keep is None and recipe.heads is None):
        return scores.steps is None and recipe.steps in (None, 1)
    cut = scores.steps.heads if recipe.keep is None else scores.steps.keep
    return (
        recipe.steps in (None, 1, scores.steps.count)
        and scores.steps.reconstructed == reconstructed_between_steps(recipe, scores.n)
        and cut == (recipe.heads if recipe.keep is None else recipe.keep)
        and (scores.steps.heads is None) == (recipe.heads is None)
        and scores.steps.constraints == as_dict(constraints_of(recipe))
    )
