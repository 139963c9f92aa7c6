"""What a recipe asks of scores and plan, and what of that contradicts itself."""

from headprune.config import Constraints, Recipe
from headprune.distributed import World
from headprune.errors import ConfigError, did_you_mean
from headprune.method_names import METHOD_NAMES
from headprune.planning import target_of
from headprune.planning.constraints import as_dict
from headprune.plans import HeadScores
from headprune.scoring import NEED_NO_ROWS
from headprune.surgery import WAYS
from headprune.surgery.least_squares import How

DEFAULT_METHOD = "unique"
DEFAULT_STEPS = 2
FEWEST_TO_RECONSTRUCT = 8
# They run many masks, from a model that has all heads; let heads go together by themselves; or don't run the model at all.
_ONCE = ("ablation", "shapley", "gates", *NEED_NO_ROWS)


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
        if method not in METHOD_NAMES:
            raise ConfigError(
                f"there is no method {method!r}",
                where=f"methods: {', '.join(methods)}",
                hint=did_you_mean(method, METHOD_NAMES),
            )
    return {
        method: recipe.model_copy(update={"method": method, "methods": ()}) for method in methods
    }


def steps_of(recipe: Recipe) -> int:
    """Return in how many steps heads go: what was said, else a few wherever scores can be made again on what is left."""
    if recipe.steps is not None:
        return recipe.steps
    leads_somewhere = recipe.keep is not None or recipe.heads is not None
    alone = recipe.until or recipe.rearrange or recipe.normalize != "none"
    once = method_of(recipe) in _ONCE or recipe.objective == "metric"
    return DEFAULT_STEPS if leads_somewhere and not alone and not once else 1


def reconstructed_between_steps(recipe: Recipe, examples: int) -> How | None:
    """Return how what is left is reconstructed before it is scored again: the way that takes most off, of those asked for."""
    enough = examples >= FEWEST_TO_RECONSTRUCT
    return (
        None
        if recipe.reconstruct == "none" or not enough
        else WAYS[recipe.reconstruct or "best"][-1]
    )


def is_tolerant(recipe: Recipe) -> bool:
    """Whether a tolerance is the budget; beside another one it is the gate's."""
    return recipe.max_drop is not None


def check_course(recipe: Recipe, *, world: World | None = None) -> None:
    """Refuse a race that isn't run by ablation, or not for a cut through all heads; steps and budgets that lead nowhere.

    Raises:
        ConfigError: It is such a race, there are such steps or budgets, or several processes would train the same gates.
        PlanError: A target is none.
    """
    constraints_of(recipe)
    if recipe.method == "gates" and world is not None and world.size > 1:
        raise ConfigError(
            f"gates are trained step after step, in one process, and a launcher started {world.size}",
            where="--method gates",
            hint="leave out torchrun or accelerate launch, or use another method",
        )
    steps = steps_of(recipe)
    leads_nowhere = recipe.keep is None and recipe.heads is None and not is_tolerant(recipe)
    if steps > 1 and (leads_nowhere or recipe.until):
        raise ConfigError(
            "steps lead to a keep ratio or a number of heads, and are no race",
            where=f"--steps {steps}",
            hint="say --keep 0.5 or --heads 40, for example, and leave out --until and targets",
        )
    if steps > 1 and (recipe.method in _ONCE or recipe.normalize != "none"):
        raise ConfigError(
            "in steps heads are scored as they are, all that are left in one pass",
            where=f"--steps {steps}",
            hint=f"use another method than {', '.join(_ONCE)}, and leave out --normalize",
        )
    if recipe.rearrange and (steps > 1 or method_of(recipe) not in ("fisher", "fisher:batch")):
        raise ConfigError(
            f"{method_of(recipe)} scores don't say what heads lose together"
            if steps == 1
            else "heads that go together are rearranged once",
            where="--rearrange",
            hint="use --method fisher or fisher:batch, in one step",
        )
    if recipe.objective == "metric" and (
        recipe.method != "ablation" or steps > 1 or recipe.normalize != "none"
    ):
        raise ConfigError(
            "the metric itself has no slope: heads are scored by what it loses without each",
            where="--objective metric",
            hint="say --method ablation, and leave out --steps and --normalize",
        )
    if recipe.until is not None:
        _check_race(recipe)


def _check_race(recipe: Recipe) -> None:
    """Refuse a race that isn't run by ablation, by the loss, for one cut through all heads as they are."""
    if recipe.objective != "loss":
        raise ConfigError(
            "heads race by the loss", where="--until decided", hint="leave out --objective"
        )
    if recipe.keep is None or recipe.method != "ablation":
        raise ConfigError(
            "heads race by ablation, for the places that a keep ratio leaves",
            where="--until decided",
            hint="say --method ablation and --keep 0.7, for example",
        )
    if recipe.normalize != "none" or recipe.sites:
        raise ConfigError(
            "a race decides for one cut through the scores of all heads as they are",
            where="--until decided",
            hint="leave out --normalize and --sites, or score without --until",
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
