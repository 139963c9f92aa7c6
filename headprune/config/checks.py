"""Values and contradictions that depend on several sections of the settings; they need no model, data or scores."""

from headprune.config.sections import Constraints, RunSpec, ScoreSpec
from headprune.errors import ConfigError
from headprune.scoring.catalogue import DEFAULT_METHOD, METHODS, get_method

DEFAULT_STEPS = 2
NO_ROLES = "none"
"""What ``--roles`` says where no roles are looked at."""
PRUNE = "prune"
"""What ``methods`` of a sweep call the curve of what the command ``prune`` does."""


def methods_of(score: ScoreSpec, *names: str) -> tuple[ScoreSpec, ...]:
    """Return one section per compared method, each once: ``names``, or those of the settings.

    Raises:
        ConfigError: There is no such method.
    """
    unique = dict.fromkeys(names or score.methods or (score.method or DEFAULT_METHOD,))
    return tuple(
        score.model_copy(update={"method": get_method(name).name, "methods": ()}) for name in unique
    )


def shows_prune(score: ScoreSpec) -> bool:
    """Whether a sweep has the curve of what ``prune`` does: by default, and where ``methods`` name it."""
    return PRUNE in (score.methods or (PRUNE,))


def num_steps(score: ScoreSpec, plan: Constraints | None) -> int:
    """Return in how many steps heads are removed: as set, else 2 if the remaining heads can be scored again, else 1.

    ``plan`` is the cut that the steps lead to; None where heads are scored once, for any.
    """
    if plan is None:
        return 1
    if score.steps is not None:
        return score.steps
    has_goal = plan.keep is not None or plan.heads is not None
    at_once = plan.rearrange or score.normalize != "none" or score.objective == "metric"
    again = has_goal and not at_once and get_method(score.method or DEFAULT_METHOD).rescorable
    return DEFAULT_STEPS if again else 1


def check_roles(plan: Constraints, run: RunSpec) -> None:
    """Refuse to protect roles that aren't to be looked at.

    Raises:
        ConfigError: The settings say so.
    """
    if plan.protect_role and run.roles == NO_ROLES:
        raise ConfigError(
            "roles can't be protected where they aren't measured",
            where=f"`protect_role={','.join(plan.protect_role)}`, `roles={NO_ROLES}`",
            hint="leave one of them out",
        )


def check_score(score: ScoreSpec, plan: Constraints | None, *, processes: int = 1) -> None:
    """Refuse steps without a number of heads to reach, and options of scoring that a method doesn't support.

    Raises:
        ConfigError: There are such settings, or a method that needs one process was started in several.
    """
    method = get_method(score.method or DEFAULT_METHOD)
    steps = num_steps(score, plan)
    plan = plan or Constraints()
    if method.one_process and processes > 1:
        raise ConfigError(
            f"{method.name} runs in one process, and a launcher started {processes}",
            where=f"`method={method.name}`",
            hint="leave out torchrun or accelerate launch, or use another method",
        )
    if steps > 1 and plan.keep is None and plan.heads is None and plan.max_drop is None:
        raise ConfigError(
            "steps need to know how many heads are kept in the end",
            where=f"`steps={steps}`",
            hint="give `keep=0.5` or `heads=40`, for example, and leave out targets",
        )
    if steps > 1 and not method.rescorable:
        once = [row.name for row in METHODS.values() if not row.rescorable]
        raise ConfigError(
            f"{method.name} can't score again what is left after a step",
            where=f"`steps={steps}`",
            hint=f"leave out `steps`, or use another method than {', '.join(once)}",
        )
    if steps > 1 and score.normalize != "none":
        raise ConfigError(
            "normalized scores of different steps can't be compared",
            where=f"`steps={steps}`, `normalize={score.normalize}`",
            hint="leave one of them out",
        )
    if plan.rearrange and (steps > 1 or not method.has_products):
        with_products = [row.name for row in METHODS.values() if row.has_products]
        raise ConfigError(
            f"{method.name} scores don't say what heads lose together"
            if steps == 1
            else "heads that are removed together are rearranged once",
            where="`rearrange`",
            hint=f"use `method` {' or '.join(with_products)}, in one step",
        )
    fits = "metric" in method.objectives
    if score.objective == "metric" and not (fits and score.normalize == "none"):
        raise ConfigError(
            "what heads are worth to the metric isn't normalized"
            if fits
            else "the metric has no derivative: what a head is worth to it is measured by masking the head",
            where="`objective=metric`",
            hint=f"leave out `normalize`{'' if fits else ' and `steps`, and give `method=ablation`'}",
        )
