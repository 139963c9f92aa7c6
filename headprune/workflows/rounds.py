"""How heads are scored for a cut: once, or in steps."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, num_examples
from headprune.config import Recipe
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.planning import score_in_steps
from headprune.plans import HeadScores
from headprune.runtime.distributed import World
from headprune.scoring.catalogue import get_method
from headprune.scoring.request import ScoreRequest
from headprune.scoring.score import score as score_heads
from headprune.surgery.fit import can_fit, fit, swapped_weights
from headprune.surgery.least_squares import FitMethod
from headprune.tasks.distill import Objective
from headprune.workflows.course import constraints_of, reconstructed_between_steps, steps_of


def score_with_steps(
    model: PreTrainedModel,
    anatomy: Anatomy,
    objective: Objective,
    *,
    recipe: Recipe,
    method: str,
    context: RunContext,
) -> HeadScores:
    """Score the heads once, or as often as the recipe has steps, without those that went.

    What is left is scored as it will be: reconstructed, where that is what the recipe leads to.
    """
    is_sampled = get_method(method).differentiates
    batches = objective.sampled_batches if is_sampled else objective.batches
    how = reconstructed_between_steps(recipe, num_examples(objective.batches))

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
        with _without(
            model, anatomy, gone, batches=objective.batches, how=how, world=context.world
        ):
            request = ScoreRequest(
                model,
                anatomy,
                batches,
                objective.loss,
                context=replace(context, journal=journal),
                seed=recipe.seed,
                statistic=objective.statistic,
            )
            found = score_heads(request, method=method, normalize=recipe.normalize)
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
    how: FitMethod | None,
    world: World,
) -> Iterator[None]:
    """Silence heads for the length of a block, and let those that stay make up for it: the same weights in every process."""
    if not gone:
        yield
        return
    mask = anatomy.mask(gone)
    weights = {}
    if how is not None and can_fit(model, anatomy):
        (reconstructed,) = fit(model, anatomy, batches=batches, mask=mask, methods=[how])
        weights = {
            name: world.summed(value if world.is_main else torch.zeros_like(value))
            for name, value in reconstructed.weights.items()
        }
    with swapped_weights(model, weights), gated(model, anatomy, gates=mask.to(input_device(model))):
        yield
