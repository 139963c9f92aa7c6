"""Mend what is left, on the rows that chose: some of them fit the weights, the others decide."""

from headprune.anatomy import Anatomy
from headprune.errors import DataError
from headprune.heads import HeadScores, PruningPlan
from headprune.subject import Rows, Subject, Voice
from headprune.surgery import WAYS, Mend, mend

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
    if subject.recipe.mend == "none" or not plan.remove:
        return None
    examples = rows.examples
    if len(examples) < _FEWEST:
        raise DataError(
            f"{len(examples)} calibration rows are too few to mend with: some fit, the others decide",
            where=f"--mend {subject.recipe.mend}",
            hint=f"give {_FEWEST} or more (--num-samples), or --mend none",
        )
    fitting = len(examples) - max(2, round(_HELD_OUT * len(examples)))
    deciding = subject.goal(examples[fitting:])
    voice.say("mending the output projections")
    found = mend(
        subject.model,
        anatomy,
        batches=subject.batches(examples[:fitting]),
        held_out=deciding.batches,
        loss=deciding.loss,
        remove=plan.remove,
        ways=WAYS[subject.recipe.mend],
    )
    voice.say(_told(found))
    return found


def _told(found: Mend) -> str:
    on = f"{found.held_out:,} calibration rows that it didn't see"
    if found.kept is None:
        least = min(tried.loss for tried in found.tried)
        return f"not mended: the loss on {on} would be {least:.4g} instead of {found.loss_cut:.4g}"
    how = f"{found.kept.how}, ridge {found.kept.ridge:g}" if found.kept.ridge else found.kept.how
    return (
        f"mended ({how}): the loss on {on} is {found.kept.loss:.4g} instead of {found.loss_cut:.4g}"
    )


def rows_noted(scores: HeadScores, rows: Rows, mended: Mend | None) -> HeadScores:
    """Return the scores, saying of the rows that mended, too, that they must not report."""
    if mended is None:
        return scores
    digests = {example.input_digest for example in rows.examples}
    return scores.model_copy(update={"rows": tuple(sorted({*scores.rows, *digests}))})
