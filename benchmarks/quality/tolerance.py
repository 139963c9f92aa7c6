"""How far ``--max-drop`` goes, and whether it keeps its word on rows that neither scored nor decided."""

from pydantic import BaseModel, ConfigDict

from headprune.config import DEMO
from headprune.evaluation import metric_with_interval, predict
from headprune.passes import Progress
from headprune.workflows.plan import plan_for
from headprune.workflows.reconstruct import as_pruned
from headprune.workflows.rows import Purpose, separate_rows
from headprune.workflows.session import open_session


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
    session = open_session(DEMO.replaced(seed=seed, max_drop=max_drop), progress=progress)
    model, anatomy = session.model, session.anatomy
    parts = separate_rows(session, Purpose(decides=True))
    _scored, plan = plan_for(session, parts, show=lambda _scores, _plan: None, keep_parts=False)
    batches = session.batches(parts.report.examples)
    whole = predict(model, session.task, batches=batches)
    with as_pruned(session, plan, parts):
        left = predict(model, session.task, batches=batches)
    metric = session.metric
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
