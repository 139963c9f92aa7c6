"""How far ``--max-drop`` goes, and whether it keeps its word on rows that neither scored nor decided."""

from pydantic import BaseModel, ConfigDict

from headprune.config import DEMO, Recipe
from headprune.evaluation import metric_with_interval, predict
from headprune.inspection import inspect
from headprune.masking import gated
from headprune.subject import Progress, open_subject
from headprune.surgery.fit import restoring
from headprune.workflows.reconstruction import reconstruct_if_asked
from headprune.workflows.tolerance import plan_within, rows_in_three


class Within(BaseModel):
    """One cut of MiniLM by ``--max-drop``.

    Args:
        seed: Of the rows.
        max_drop: What was tolerated.
        removed: The share of heads that went.
        base: The metric of the whole model on rows that report.
        value: That of what is left.
        kept_its_word: Whether the difference is no more than what was tolerated.
        interval: 95 % bootstrap interval of the paired difference.
        n: Rows that report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    max_drop: str
    removed: float
    base: float
    value: float
    kept_its_word: bool
    interval: tuple[float, float]
    n: int


def go_within(max_drop: str, *, seed: int, progress: Progress) -> Within:
    """Prune MiniLM on pairs of STS-B as far as a tolerance allows, and look at the test pairs."""
    recipe = Recipe.from_settings(DEMO.replaced(seed=seed, max_drop=max_drop))
    subject = open_subject(recipe, progress=progress)
    model, anatomy = subject.model, inspect(subject.model)
    choosing, deciding, reporting = rows_in_three(subject, progress=progress, chose=())
    _scored, plan = plan_within(
        subject, anatomy, choosing, deciding, progress=progress, keep_parts=False
    )
    batches = subject.batches(reporting.examples)
    whole = predict(model, subject.task, batches=batches)
    gates = anatomy.mask(plan.remove)
    with restoring(model, anatomy):
        reconstruct_if_asked(subject, anatomy, plan, choosing, progress=progress)
        with gated(model, anatomy, gates=gates):
            left = predict(model, subject.task, batches=batches)
    metric = subject.statistic()
    base = metric_with_interval(whole, metric, seed=seed).value
    value = metric_with_interval(left, metric, seed=seed).value
    interval = metric_with_interval(left, metric, seed=seed, other=whole).interval
    return Within(
        seed=seed,
        max_drop=max_drop,
        removed=len(plan.remove) / len(anatomy.heads),
        base=base,
        value=value,
        kept_its_word=base - value <= plan.budget["allowed"],
        interval=interval,
        n=len(whole.references),
    )
