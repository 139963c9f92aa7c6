"""Mend what is left, on the rows that chose: some of them fit the weights, the others decide."""

from collections.abc import Collection, Sequence

from jaxtyping import Float
from torch import Tensor

from headprune.anatomy import Anatomy
from headprune.errors import DataError
from headprune.evaluation import predict
from headprune.heads import HeadId, HeadScores, PruningPlan
from headprune.masking import gated
from headprune.replay import losses
from headprune.subject import Rows, Subject, Voice
from headprune.surgery import WAYS, Judge, Mend, mend
from headprune.tasks.rows import Example

_HELD_OUT = 0.25
_FEWEST = 8


def mend_if_asked(
    subject: Subject, anatomy: Anatomy, plan: PruningPlan, rows: Rows, *, voice: Voice
) -> Mend | None:
    """Refit the output projections for the heads that will stay, where the recipe says so.

    Args:
        subject: The model, its heads still there; changed in place where mending helps.
        anatomy: Its anatomy.
        plan: Which heads will go.
        rows: The calibration rows; the last quarter decides.
        voice: How to talk meanwhile.

    Raises:
        DataError: There are too few rows.
    """
    asked, examples = subject.recipe.mend, rows.examples
    if asked == "none" or not plan.remove:
        return None
    if len(examples) < _FEWEST and asked is None:
        voice.say(f"not mended: {len(examples)} calibration rows are too few to fit and to decide")
        return None
    if len(examples) < _FEWEST:
        raise DataError(
            f"{len(examples)} calibration rows are too few to mend with: some fit, the others decide",
            where=f"--mend {asked}",
            hint=f"give {_FEWEST} or more (--num-samples), or --mend none",
        )
    voice.say("mending the output projections")
    found = mended_for(subject, anatomy, plan.remove, rows)
    voice.say(_told(found))
    return found


def mended_for(subject: Subject, anatomy: Anatomy, remove: Collection[HeadId], rows: Rows) -> Mend:
    """Mend for the heads that stay, in place; the last quarter of ``rows`` decides how."""
    examples = rows.examples
    fitting = len(examples) - max(2, round(_HELD_OUT * len(examples)))
    return mend(
        subject.model,
        anatomy,
        batches=subject.batches(examples[:fitting]),
        judge=_judge(subject, anatomy, examples[fitting:]),
        remove=remove,
        ways=WAYS[subject.recipe.mend or "best"],
    )


def _judge(subject: Subject, anatomy: Anatomy, examples: Sequence[Example]) -> Judge:
    """Return what decides: the task's metric, which a loss need not agree with, or without labels the loss."""
    model, recipe = subject.model, subject.recipe
    goal = subject.goal(examples)
    if recipe.objective == "distill":

        def mean_loss(mask: Float[Tensor, " heads"]) -> float:
            found = losses(
                model, anatomy, batches=goal.batches, loss=goal.loss, masks=mask[None], base=mask
            )
            return float(found.double().mean())

        return Judge(mean_loss, "loss", False, len(examples))
    from headprune.tasks.metrics import BUILT_IN, load_metric

    name = recipe.metric or subject.task.metric
    statistic = load_metric(name, higher_is_better=recipe.higher_is_better)
    plain = BUILT_IN.get(name, statistic)

    def metric(mask: Float[Tensor, " heads"]) -> float:
        with gated(model, anatomy, gates=mask.to(model.device)):
            found = predict(model, subject.task, batches=goal.batches)
        return plain.compute(found.predictions, found.references)

    return Judge(metric, name, statistic.higher_is_better, len(examples))


def _told(found: Mend) -> str:
    on = f"{found.held_out:,} calibration rows that it didn't see"
    if not found.tried:
        return "not mended: there is no bias to move"
    if found.kept is None:
        tried = ", ".join(f"{one.value:.4g}" for one in found.tried)
        return (
            f"not mended: {found.judged_by} on {on} is {found.unmended:.4g}, and would be {tried}"
        )
    how = f"{found.kept.how}, ridge {found.kept.ridge:g}" if found.kept.ridge else found.kept.how
    return f"mended ({how}): {found.judged_by} on {on} is {found.kept.value:.4g} instead of {found.unmended:.4g}"


def rows_noted(scores: HeadScores, rows: Rows, mended: Mend | None) -> HeadScores:
    """Return the scores, saying of the rows that mended, too, that they must not report."""
    if mended is None:
        return scores
    digests = {example.input_digest for example in rows.examples}
    return scores.model_copy(update={"rows": tuple(sorted({*scores.rows, *digests}))})
