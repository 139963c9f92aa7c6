"""Prune a model by a recipe as ``prune`` does, and judge what is left on rows that chose nothing.

Heads are masked, not cut: that both give the same is proven elsewhere, for every family and by every ``prune``.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.quality.subjects import Case
from headprune.anatomy import Anatomy
from headprune.config import Settings
from headprune.config.checks import num_steps
from headprune.evaluation import Predictions, metric_with_interval, predict
from headprune.footprint import kv_cache_bytes_per_token
from headprune.masking import gated
from headprune.passes import Progress
from headprune.planning import make_plan
from headprune.plans import HeadScores, PruningPlan
from headprune.runtime.journal import Journal
from headprune.scoring.catalogue import get_method
from headprune.surgery import add_zero_biases, cut, remove_biases
from headprune.surgery.projections import restoring
from headprune.tasks.distill import NO_OBJECTIVE
from headprune.workflows.finish import PROOF_ROWS
from headprune.workflows.heal_cut import heal_cut
from headprune.workflows.reconstruct import reconstruct_if_asked
from headprune.workflows.session import Session
from headprune.workflows.stepwise import Scoring, method_of, score_with_steps
from headprune.workflows.teacher import Teacher, copy_of


class Measured(BaseModel):
    """One cut of one model by one recipe.

    Args:
        subject: Which model and data.
        contender: Which recipe.
        keep: The share of heads that was asked for.
        seed: Of the calibration rows.
        value: The metric on the rows that report.
        interval: Its 95 % bootstrap interval.
        base: The metric of the whole model on the same rows.
        difference: ``value - base``.
        difference_interval: 95 % bootstrap interval of the paired difference.
        n: Rows that report.
        heads: Heads that stay, and that there were.
        reconstruct: How the rest was reconstructed; None where it wasn't.
        seconds: Scoring, planning and reconstruction; steps that other keep ratios share are done once.
        kv_cache: Bytes of keys and values per token in memory, of a model that was cut so and of the whole one; None where it
            keeps none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    contender: str
    keep: float
    seed: int
    metric: str
    value: float
    interval: tuple[float, float]
    base: float
    difference: float
    difference_interval: tuple[float, float]
    n: int
    heads: tuple[int, int]
    reconstruct: str | None
    seconds: float
    kv_cache: tuple[int, int] | None = None


class Bench:
    """A case with what doesn't change from recipe to recipe: the whole model's predictions, and scores that were made once."""

    def __init__(
        self, name: str, case: Case, anatomy: Anatomy, *, progress: Progress, folder: Path
    ) -> None:
        self.name, self.case, self.anatomy, self.progress = name, case, anatomy, progress
        self.batches = case.session.batches(case.parts.report.examples)
        self.whole = self._predict(())
        self._once: dict[str, HeadScores] = {}
        self._folder = folder

    def measure(self, contender: str, settings: Mapping[str, Any], *, keep: float) -> Measured:
        """Prune by a recipe, judge, and leave the model as it was."""
        asked = self.case.session.settings.replaced(
            keep=keep, run_dir=str(self._folder), **settings
        )
        session = replace(self.case.session, settings=asked)
        start = time.perf_counter()
        plan = make_plan(self._scores(session), self.anatomy, constraints=asked.plan)
        teacher = copy_of(session, self.anatomy) if asked.distill.heal else None
        with restoring(session.model, self.anatomy), self._biases_allowed_by(asked):
            reconstructed = reconstruct_if_asked(session, self.anatomy, plan, self.case.parts)
            student = None if teacher is None else self._healed(session, plan, teacher)
            seconds = time.perf_counter() - start
            found = (
                self._predict(plan.remove)
                if student is None
                else predict(student.model, session.task, batches=self.batches)
            )
        kept = None if reconstructed is None else reconstructed.kept
        return self._judged(
            found,
            plan,
            contender=contender,
            keep=keep,
            reconstruct=None if kept is None else kept.method,
            seconds=seconds,
            kv_cache=self._kv_cache(plan),
        )

    def _healed(self, session: Session, plan: PruningPlan, teacher: Teacher) -> Session:
        """Cut a copy of the model, and heal it as ``prune --heal`` does."""
        student = replace(session, model=copy.deepcopy(session.model))
        anatomy = cut(student.model, self.anatomy, remove=plan.remove, pad=plan.is_padded)
        sample = self.batches[-1].take(PROOF_ROWS)
        _healed, _proofs, checkpoints = heal_cut(student, teacher, anatomy, self.case.parts, sample)
        checkpoints.drop()
        return student

    @contextmanager
    def _biases_allowed_by(self, settings: Settings) -> Iterator[None]:
        """Let reconstruction have biases to move, where the settings allow it and the family knows them."""
        model = self.case.session.model
        given = add_zero_biases(model, self.anatomy) if settings.reconstruct.allow_bias else None
        try:
            yield
        finally:
            if given is not None:
                remove_biases(model, given)

    def _kv_cache(self, plan: PruningPlan) -> tuple[int, int] | None:
        """Cut a copy, and look at what its cache holds."""
        model, batch = self.case.session.model, self.batches[0]
        whole = kv_cache_bytes_per_token(model, batch=batch)
        if whole is None:
            return None
        twin = copy.deepcopy(model)
        cut(twin, self.anatomy, remove=plan.remove, pad=plan.is_padded)
        left = kv_cache_bytes_per_token(twin, batch=batch)
        return None if left is None else (left, whole)

    def cost(self, settings: Mapping[str, Any], *, keep: float) -> float:
        """Return what a recipe takes, in forwards of the calibration rows: the mean of one before and one after it."""
        before = self._forward_seconds()
        seconds = self.measure("cost", settings, keep=keep).seconds
        return seconds / ((before + self._forward_seconds()) / 2)

    def _forward_seconds(self) -> float:
        session = self.case.session
        batches = session.batches(self.case.parts.calibrate.examples)
        start = time.perf_counter()
        predict(session.model, session.task, batches=batches)
        return time.perf_counter() - start

    def _judged(self, found: Predictions, plan: PruningPlan, **told: Any) -> Measured:
        session = self.case.session
        metric, seed = session.metric, session.settings.data.seed
        value = metric_with_interval(found, metric, seed=seed)
        base = metric_with_interval(self.whole, metric, seed=seed)
        difference = metric_with_interval(found, metric, seed=seed, other=self.whole)
        return Measured(
            subject=self.name,
            seed=seed,
            metric=metric.name,
            value=value.value,
            interval=value.interval,
            base=base.value,
            difference=difference.value,
            difference_interval=difference.interval,
            n=len(found.references),
            heads=(plan.budget["heads_after"], plan.budget["heads_before"]),
            **told,
        )

    def _scores(self, session: Session) -> HeadScores:
        settings = session.settings
        spec, method = settings.score, method_of(settings.score)
        steps = num_steps(spec, settings.plan)
        key = f"{method}-{spec.normalize}-{steps}"
        if steps == 1 and key in self._once:
            return self._once[key]
        needs_rows = get_method(method).needs_rows
        rows = self.case.parts.calibrate.examples
        objective = session.objective(rows) if needs_rows else NO_OBJECTIVE
        # Steps that several keep ratios share (the first one) are found again.
        context = session.context(Journal(self._folder / key.replace(":", "-")))
        scoring = Scoring(spec, settings.plan, settings.reconstruct, settings.data.seed)
        found = score_with_steps(session.model, self.anatomy, objective, scoring, context=context)
        self._once[key] = found
        return found

    def _predict(self, gone: Any) -> Predictions:
        model = self.case.session.model
        gates = self.anatomy.mask(gone)
        with gated(model, self.anatomy, gates=gates.to(model.device)):
            return predict(model, self.case.session.task, batches=self.batches)
