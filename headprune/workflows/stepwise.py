"""Score once, or in steps: heads are removed, the remaining heads reconstructed, and scored again; what allows it."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.roles import Roles
from headprune.anatomy.sites import Anatomy
from headprune.artefact import DEFAULT_RECONSTRUCT, FitMethod
from headprune.batch import Batch, num_examples
from headprune.config import Constraints, ReconstructSpec, ScoreSpec, Settings
from headprune.config.checks import check_roles, check_score, methods_of, num_steps
from headprune.heads import HeadId, SiteId
from headprune.masking import gated
from headprune.passes import RunContext
from headprune.placement import input_device
from headprune.planning.constraints import as_dict, target_of, with_role_heads
from headprune.planning.plan import score_in_steps
from headprune.plans import HeadScores
from headprune.runtime.distributed import World
from headprune.scoring.catalogue import DEFAULT_METHOD, get_method
from headprune.scoring.request import ScoreRequest
from headprune.scoring.request import score as score_heads
from headprune.surgery.fit import fit
from headprune.surgery.head_settings import named_heads
from headprune.surgery.projections import can_fit, swapped_weights
from headprune.surgery.reconstruct import RECONSTRUCT_METHODS
from headprune.tasks.distill import Objective

FEWEST_TO_RECONSTRUCT = 8
"""Fewest calibration rows to reconstruct: some fit, the others decide."""


def method_of(score: ScoreSpec, reconstruct: ReconstructSpec | None = None) -> str:
    """Return how heads are scored: as set, else by what counts on reconstruction, unless there is none."""
    counts_on_it = reconstruct is None or reconstruct.reconstruct != "none"
    return score.method or (DEFAULT_METHOD if counts_on_it else "gradient")


def method_between_steps(reconstruct: ReconstructSpec, examples: int) -> FitMethod | None:
    """Return how the remaining heads are reconstructed before they are scored again: by the strongest of the methods tried.

    With too few examples to fit on, nothing is reconstructed.
    """
    if reconstruct.reconstruct == "none" or examples < FEWEST_TO_RECONSTRUCT:
        return None
    return RECONSTRUCT_METHODS[reconstruct.reconstruct or DEFAULT_RECONSTRUCT][-1]


def check_settings(
    settings: Settings, *, compares: bool = False, world: World | None = None
) -> None:
    """Refuse settings that contradict each other; with ``compares``, for every method of ``methods``.

    Raises:
        ConfigError: There are such settings, or a method that needs one process was started in several.
        PlanError: A target can't be read as a share or a number.
    """
    target_of(settings.plan)
    check_roles(settings.plan, settings.run)
    for score in methods_of(settings.score) if compares else (settings.score,):
        check_score(score, settings.plan, processes=world.size if world else 1)


def with_protected_heads(
    model: PreTrainedModel,
    anatomy: Anatomy,
    constraints: Constraints,
    *,
    roles: Roles | None,
    notify: Callable[[str], None],
) -> Constraints:
    """Return what all cuts and steps keep to: heads of a role to protect are protected, and those that the model's settings name.

    Raises:
        PlanError: The roles don't say who has one that is to be protected.
    """
    constraints = with_role_heads(constraints, roles)
    named = [str(head) for head in named_heads(model, anatomy)]
    if named:
        notify(
            f"{len(named)} heads are kept, as generation_config.json names them: {', '.join(named)}"
        )
    return constraints.model_copy(update={"protect": (*constraints.protect, *named)})


def steps_fit(scores: HeadScores, settings: Settings, plan: Constraints) -> bool:
    """Whether scores were made in the steps that settings ask for, towards ``plan``; if unset, in any for that cut."""
    steps, made = settings.score.steps, scores.steps
    if made is None or (plan.keep is None and plan.heads is None):
        return made is None and steps in (None, 1)
    same_cut = made.heads == plan.heads if plan.keep is None else made.keep == plan.keep
    return (
        same_cut
        and (made.heads is None) == (plan.heads is None)
        and steps in (None, 1, made.count)
        and made.reconstructed == method_between_steps(settings.reconstruct, scores.n)
        and made.constraints == as_dict(plan)
    )


@dataclass(frozen=True)
class Scoring:
    """How heads are scored, and for what.

    Args:
        score: The method, and in how many steps.
        plan: The cut that the steps lead to; None scores once, for any.
        reconstruct: Whether the remaining heads are reconstructed in between.
        seed: For methods that draw random numbers.
    """

    score: ScoreSpec
    plan: Constraints | None
    reconstruct: ReconstructSpec
    seed: int = 0


def score_with_steps(
    model: PreTrainedModel,
    anatomy: Anatomy,
    objective: Objective,
    scoring: Scoring,
    *,
    context: RunContext,
) -> HeadScores:
    """Score the heads once, or once per step, without the heads removed so far; the model is left as it was.

    The remaining heads are scored as they will be saved: reconstructed, if the settings say so.
    """
    score = scoring.score
    method = get_method(method_of(score, scoring.reconstruct))
    batches = objective.sampled_batches if method.differentiates else objective.batches
    between = method_between_steps(scoring.reconstruct, num_examples(objective.batches))
    plan, steps = scoring.plan, num_steps(score, scoring.plan)
    known: dict[SiteId, Tensor] = {}

    def rescore(removed: Collection[HeadId]) -> HeadScores:
        journal = context.journal
        if removed:
            does_fit = between is not None and can_fit(model, anatomy)
            context.notify(
                f"{'reconstructing, then ' if does_fit else ''}"
                f"scoring the {len(anatomy.heads) - len(removed)} heads that are left"
            )
            names = ",".join([str(between), *map(str, removed)]).encode()
            journal = journal and journal.within(hashlib.sha256(names).hexdigest()[:16])
        removal = _Removal(removed, objective.batches, between, context.world)
        with removal.from_model(model, anatomy, known):
            request = ScoreRequest(
                model,
                anatomy,
                batches,
                objective.loss,
                context=replace(context, journal=journal),
                seed=scoring.seed,
                statistic=objective.statistic,
                grams=known if plan is not None and steps > 1 else None,
            )
            scores = score_heads(request, method=method.name, normalize=score.normalize)
        return scores.model_copy(update={"objective": score.objective})

    if plan is None or steps == 1:
        return rescore(())
    scores = score_in_steps(anatomy, rescore=rescore, constraints=plan, steps=steps)
    note = scores.steps and scores.steps.model_copy(update={"reconstructed": between})
    return scores.model_copy(update={"steps": note})


@dataclass(frozen=True)
class _Removal:
    """Heads that are removed for a while, and the reconstructed weights of the kept heads."""

    removed: Collection[HeadId]
    batches: Sequence[Batch]
    method: FitMethod | None
    world: World

    @contextmanager
    def from_model(
        self, model: PreTrainedModel, anatomy: Anatomy, grams: dict[SiteId, Tensor]
    ) -> Iterator[None]:
        """Mask the heads for the duration of a ``with`` block, with the same weights in every process.

        ``grams``, those of the heads' outputs before, become those after: fitting has seen these outputs.
        """
        if not self.removed:
            yield
            return
        mask = anatomy.mask(self.removed)
        weights: dict[str, Tensor] = {}
        unchanged: dict[SiteId, Tensor] = {}
        if self.method is not None and can_fit(model, anatomy):
            # Towards their own outputs, as `unique` counts on it. Measured: aimed at the stream, they choose worse heads next.
            (fitted,) = fit(
                model,
                anatomy,
                batches=self.batches,
                mask=mask,
                methods=[self.method],
                to_stream=False,
            )
            unchanged = {name: gram for name, gram in grams.items() if name in fitted.unchanged}
            unchanged |= fitted.grams
            weights = {
                name: self.world.summed(
                    value if self.world.is_main else value.new_zeros(value.shape)
                )
                for name, value in fitted.weights.items()
            }
        grams.clear()
        grams.update(unchanged)
        with (
            swapped_weights(model, weights),
            gated(model, anatomy, gates=mask.to(input_device(model))),
        ):
            yield
