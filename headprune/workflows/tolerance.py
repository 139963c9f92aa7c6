"""``--max-drop``: prune as far as the interval of the metric stays within what is tolerated, on rows that chose no head.

Three kinds of rows: those that score and reconstruct, those that decide how far to go, and those that report in the end.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.config import Constraints, Recipe
from headprune.errors import PlanError
from headprune.evaluation import Predictions, metric_with_interval, predict
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.planning import check_constraints, make_plan
from headprune.planning.constraints import conflicting_fields, with_keep
from headprune.plans import HeadScores, PruningPlan
from headprune.subject import Progress, Rows, Subject, separate_rows
from headprune.surgery.fit import can_fit, restoring
from headprune.tasks.rows import fingerprint, noted_rows, set_apart, without_noted
from headprune.workflows.course import constraints_of
from headprune.workflows.planning import with_savings
from headprune.workflows.reconstruction import may_reconstruct, reconstructed_for
from headprune.workflows.scores import Scored, find_scores

TIMES = 5
"""So many times the calibration rows are drawn: one part scores, the rest decides."""
_STEP = 0.05
_DEEPEST = 0.1
_FEWEST = 8


@dataclass(frozen=True)
class Look:
    """One cut that was looked at.

    Args:
        keep: The share of heads that it keeps.
        drop: How much worse the metric is, in its own units.
        worst: Upper end of the 95 % interval of that.
    """

    keep: float
    drop: float
    worst: float


def rows_in_three(
    subject: Subject, *, progress: Progress, chose: Collection[str]
) -> tuple[Rows, Rows, Rows]:
    """Return rows that score, rows that decide, rows that report: no input is in two of them."""
    drawn, reporting = separate_rows(subject, progress=progress, chose=chose, times=TIMES)
    recipe = subject.recipe
    count = min(recipe.num_samples, recipe.limit or recipe.num_samples)
    count = min(count, max(_FEWEST, len(drawn.examples) // 3))
    scoring, others = set_apart(drawn.examples, count)
    parts = scoring, without_noted(others, chose)
    progress.notify(f"{len(parts[0]):,} rows score, {len(parts[1]):,} decide how far to go")
    choosing, deciding = (
        Rows(part, {**drawn.note, "fingerprint": fingerprint(part), "n": len(part)})
        for part in parts
    )
    return choosing, deciding, reporting


def plan_within(
    subject: Subject,
    anatomy: Anatomy,
    choosing: Rows,
    deciding: Rows,
    *,
    progress: Progress,
    keep_parts: bool,
) -> tuple[Scored, PruningPlan]:
    """Score towards the deepest cut there is, then go as deep as the tolerance allows; see :func:`deepest`."""
    floor = keeps(anatomy, subject.recipe)[-1]
    towards = subject.recipe.model_copy(update={"keep": floor, "max_drop": None})
    deep = replace(subject, recipe=towards)
    found = find_scores(deep, anatomy, choosing, progress=progress, keep_parts=keep_parts)
    plan = deepest(
        subject, anatomy, found.scores, choosing=choosing, deciding=deciding, progress=progress
    )
    noted = found.scores.model_copy(
        update={"rows": noted_rows(deciding.examples, earlier=found.scores.rows)}
    )
    return replace(found, scores=noted), plan


def deepest(
    subject: Subject,
    anatomy: Anatomy,
    scores: HeadScores,
    *,
    choosing: Rows,
    deciding: Rows,
    progress: Progress,
) -> PruningPlan:
    """Return the plan for the fewest heads with which the metric stays within the recipe's ``max_drop``.

    Keep ratios in steps of 5 % are tried by bisection, reconstructed as in ``prune``, until the last whose paired difference has
    its whole 95 % interval within the tolerance (each look has its own 95 %: there are up to five). The model is left as it was.

    Raises:
        PlanError: Not even one step stays within it.
    """
    recipe, model = subject.recipe, subject.model
    batches = subject.batches(deciding.examples)
    whole = predict(model, subject.task, batches=batches, track=progress.track)
    judged = partial(metric_with_interval, metric=subject.statistic(), seed=recipe.seed)
    base = judged(whole)
    if recipe.max_drop is None:
        raise PlanError("no drop is told", where="`max_drop`", hint="such as `max_drop=1%`")
    allowed = recipe.max_drop.of(base.value)

    def look(keep: float) -> Look:
        plan = _plan(subject, anatomy, scores, keep)
        with restoring(model, anatomy):
            if (
                recipe.reconstruct != "none"
                and may_reconstruct(choosing)
                and can_fit(model, anatomy)
            ):
                reconstructed_for(subject, anatomy, plan.remove, choosing)
            found = _predict(subject, anatomy, plan.remove, batches=batches)
        difference = judged(found, other=whole)
        low, high = difference.interval
        drop, worst = (
            (-difference.value, -low) if base.higher_is_better else (difference.value, high)
        )
        progress.notify(
            f"keep {keep:g}: {subject.metric} {base.value:.4f} -> {base.value + difference.value:.4f}, "
            f"a drop of {worst + 0:.4g} at most ({allowed:.4g} allowed; n = {len(deciding.examples):,})"
        )
        return Look(keep, drop, worst)

    looks = _bisect(keeps(anatomy, recipe), look, allowed=allowed)
    within = [one for one in looks if one.worst <= allowed]
    if not within:
        raise PlanError(
            f"no cut stays within a drop of {recipe.max_drop}: at keep {looks[-1].keep:g} it may be {looks[-1].worst:.4g}",
            where=f"`max_drop={recipe.max_drop}`",
            hint="allow more, or give more `data`: the interval narrows",
        )
    plan = _plan(subject, anatomy, scores, min(one.keep for one in within))
    told = {
        "max_drop": str(recipe.max_drop),
        "allowed": allowed,
        "decided_on": len(deciding.examples),
        "looks": [asdict(one) for one in looks],
    }
    noted = plan.model_copy(update={"budget": {**plan.budget, **told}})
    return with_savings(model, anatomy, noted)


def keeps(anatomy: Anatomy, recipe: Recipe) -> tuple[float, ...]:
    """Return the keep ratios that are looked at, falling: from one step below all heads on, those that can be cut.

    Raises:
        PlanError: None can.
    """
    constraints = constraints_of(recipe)
    problem = check_constraints(anatomy, constraints)
    least = round(problem.fewest_to_keep / len(problem.anatomy.heads) + 0.005, 2)
    steps = [round(1 - place * _STEP, 2) for place in range(1, round(1 / _STEP))]
    wanted = sorted({*(keep for keep in steps if keep > least), least}, reverse=True)
    points = [keep for keep in wanted if keep >= _DEEPEST]
    lawful = [keep for keep in points if _can_be_cut(anatomy, with_keep(constraints, keep))]
    if not lawful:
        raise PlanError(
            "no head can be removed",
            where=conflicting_fields(constraints),
            hint="protect fewer, or lower `min_heads`",
        )
    return tuple(lawful)


def _can_be_cut(anatomy: Anatomy, constraints: Constraints) -> bool:
    values = (0.0,) * len(anatomy.heads)
    flat = HeadScores(method="none", heads=anatomy.heads, values=values, n=0, seed=0)
    try:
        make_plan(flat, anatomy, constraints=constraints.model_copy(update={"rearrange": False}))
    except PlanError:
        return False
    return True


def _bisect(
    points: Sequence[float], look: Callable[[float], Look], *, allowed: float
) -> list[Look]:
    """Look at ever fewer points, as if every cut that is less deep than one within the tolerance were within it, too."""
    looks: list[Look] = []
    low, high = -1, len(points)  # the last known to be within, the first known not to be
    while high - low > 1:
        middle = (low + high) // 2
        looks.append(look(points[middle]))
        if looks[-1].worst <= allowed:
            low = middle
        else:
            high = middle
    return looks


def _plan(subject: Subject, anatomy: Anatomy, scores: HeadScores, keep: float) -> PruningPlan:
    constraints = with_keep(constraints_of(subject.recipe), keep)
    return make_plan(scores, anatomy, constraints=constraints)


def _predict(
    subject: Subject, anatomy: Anatomy, gone: Collection[HeadId], *, batches: Sequence[Batch]
) -> Predictions:
    gates = anatomy.mask(gone)
    with gated(subject.model, anatomy, gates=gates):
        return predict(subject.model, subject.task, batches=batches)
