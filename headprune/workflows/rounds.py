"""How heads are scored for a cut: once, in steps, by a race, or by the metric itself."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from headprune.allocator import kept_memory
from headprune.anatomy import Anatomy
from headprune.batch import Batch, num_examples
from headprune.config import Recipe
from headprune.distributed import World
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.planning import score_in_steps
from headprune.plans import HeadScores, Race
from headprune.scoring import DIFFERENTIATE, metric_drop, race_heads
from headprune.scoring import score as score_heads
from headprune.subject import Rows, Subject
from headprune.surgery.fit import can_fit, fit, having
from headprune.surgery.least_squares import How
from headprune.tasks.distill import Goal
from headprune.workflows.course import constraints_of, reconstructed_between_steps, steps_of

# Of any decision of a race being wrong.
_ERROR_PROBABILITY = 0.05


def score_with_steps(
    model: PreTrainedModel,
    anatomy: Anatomy,
    goal: Goal,
    *,
    recipe: Recipe,
    method: str,
    context: RunContext,
) -> HeadScores:
    """Score the heads once, or as often as the recipe has steps, without those that went.

    What is left is scored as it will be: reconstructed, where that is what the recipe leads to.
    """
    how = reconstructed_between_steps(recipe, num_examples(goal.batches))

    def rescore(gone: Collection[HeadId]) -> HeadScores:
        journal = context.journal
        if gone:
            reconstruction = (
                "reconstruction, then " if how is not None and can_fit(model, anatomy) else ""
            )
            context.notify(
                f"{reconstruction}scoring the {len(anatomy.heads) - len(gone)} heads that are left"
            )
            names = ",".join([str(how), *map(str, gone)]).encode()
            journal = journal and journal.within(hashlib.sha256(names).hexdigest()[:16])
        with _without(model, anatomy, gone, batches=goal.batches, how=how, world=context.world):
            found = score_heads(
                model,
                anatomy,
                batches=goal.drawn if method in DIFFERENTIATE else goal.batches,
                loss=goal.loss,
                method=method,
                normalize=recipe.normalize,
                seed=recipe.seed,
                context=replace(context, journal=journal),
            )
        return found.model_copy(update={"objective": recipe.objective})

    steps = steps_of(recipe)
    if steps == 1:
        return rescore(())
    constraints = constraints_of(recipe)
    found = score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=steps)
    note = found.steps and found.steps.model_copy(update={"reconstructed": how})
    return found.model_copy(update={"steps": note})


@contextmanager
def _without(
    model: PreTrainedModel,
    anatomy: Anatomy,
    gone: Collection[HeadId],
    *,
    batches: Sequence[Batch],
    how: How | None,
    world: World,
) -> Iterator[None]:
    """Silence heads for the length of a block, and let those that stay make up for it: the same weights in every process."""
    if not gone:
        yield
        return
    mask = anatomy.mask(gone)
    weights = {}
    if how is not None and can_fit(model, anatomy):
        with kept_memory():
            (reconstructed,) = fit(model, anatomy, batches=batches, mask=mask, ways=[how])
        weights = {
            name: world.summed(value if world.is_main else torch.zeros_like(value))
            for name, value in reconstructed.weights.items()
        }
    with having(model, weights), gated(model, anatomy, gates=mask.to(input_device(model))):
        yield


def race(subject: Subject, anatomy: Anatomy, rows: Rows, *, context: RunContext) -> HeadScores:
    """Race the heads for the places that the recipe's keep ratio leaves."""
    recipe = subject.recipe
    keep = recipe.keep or 1.0

    def batches_of(places: Sequence[int]) -> Sequence[Batch]:
        return subject.batches([rows.examples[place] for place in places])

    found = race_heads(
        subject.model,
        anatomy,
        batches_of=batches_of,
        num_rows=len(rows.examples),
        loss=subject.task.loss,
        keep=keep,
        error_probability=_ERROR_PROBABILITY,
        max_work=recipe.max_work,
        seed=recipe.seed,
        context=context,
    )
    estimate = found.estimate()
    open_heads = zip(anatomy.heads, found.undecided.tolist(), strict=True)
    return HeadScores(
        method="ablation",
        heads=anatomy.heads,
        values=tuple(estimate.values.tolist()),
        standard_errors=tuple(found.standard_errors.tolist()),
        n=estimate.n,
        seed=recipe.seed,
        race=Race(
            keep=keep,
            error_probability=_ERROR_PROBABILITY,
            work=found.work,
            rows_per_head=tuple(found.rows_spent.tolist()),
            undecided=tuple(head for head, undecided in open_heads if undecided),
        ),
    )


def score_by_metric(
    subject: Subject, anatomy: Anatomy, goal: Goal, *, context: RunContext
) -> HeadScores:
    """Score the heads by what the metric loses without each."""
    recipe, statistic = subject.recipe, subject.statistic()
    found = metric_drop(
        subject.model,
        anatomy,
        batches=goal.batches,
        task=subject.task,
        statistic=statistic,
        seed=recipe.seed,
        context=context,
    )
    errors = found.standard_errors
    return HeadScores(
        method="ablation",
        objective="metric",
        metric=statistic.name,
        higher_is_better=statistic.higher_is_better,
        heads=anatomy.heads,
        values=tuple(found.values.tolist()),
        standard_errors=None if errors is None else tuple(errors.tolist()),
        n=found.n,
        seed=recipe.seed,
    )
