"""Prune a model by a recipe as ``prune`` does, and judge what is left on rows that chose nothing.

Heads are masked, not cut: that both give the same is proven elsewhere, for every family and by every ``prune``.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from benchmarks.quality.recipes import CONTENDERS, OURS, Choose, Contender, Merge
from benchmarks.quality.subjects import Case
from headprune.anatomy.sites import Anatomy
from headprune.config import Settings
from headprune.config.checks import num_steps
from headprune.evaluation import Predictions, metric_with_interval, predict
from headprune.footprint import kv_cache_bytes_per_token
from headprune.masking import gated
from headprune.passes import Progress
from headprune.planning.constraints import with_keep
from headprune.planning.plan import make_plan
from headprune.plans import HeadScores, PruningPlan
from headprune.runtime.journal import Journal
from headprune.scoring.catalogue import get_method
from headprune.surgery.cut import cut
from headprune.surgery.projections import restoring
from headprune.surgery.reconstruct import add_zero_biases, remove_biases
from headprune.tasks.distill import NO_OBJECTIVE
from headprune.workflows.finish import PROOF_ROWS
from headprune.workflows.heal_cut import heal_cut
from headprune.workflows.reconstruct import reconstruct_if_asked
from headprune.workflows.session import Session
from headprune.workflows.stepwise import Scoring, method_of, score_with_steps
from headprune.workflows.teacher import copy_of


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


class Pruned(NamedTuple):
    """A copy of a model that is reconstructed, its heads still there; how, and in how many seconds with scoring and planning.

    One whose groups are merged has a plan that removes nothing.
    """

    model: PreTrainedModel
    plan: PruningPlan
    reconstruct: str | None
    seconds: float


class Bench:
    """A case with what doesn't change from recipe to recipe: the whole model's predictions, and scores that were made once."""

    def __init__(
        self, name: str, case: Case, anatomy: Anatomy, *, progress: Progress, folder: Path
    ) -> None:
        self.name, self.case, self.anatomy, self.progress = name, case, anatomy, progress
        self.batches = case.session.batches(case.parts.report.examples)
        self.whole = self._predict(case.session.model, ())
        self._once: dict[str, HeadScores] = {}
        self._last: tuple[str, Pruned] | None = None
        self._folder = folder

    def measure(self, name: str, contender: Contender, *, keep: float) -> Measured:
        """Prune by a recipe, judge, and leave the model as it was."""
        asked = self.case.session.settings.replaced(
            keep=keep, run_dir=str(self._folder), **contender.settings
        )
        pruned = self.pruned(asked, contender)
        start = time.perf_counter()
        if asked.distill.heal or contender.train:
            model = self.trained(asked, pruned, contender)
            seconds = pruned.seconds + time.perf_counter() - start
            found = predict(model, self.case.session.task, batches=self.batches)
        else:
            seconds, found = pruned.seconds, self._predict(pruned.model, pruned.plan.remove)
        return self._judged(
            found,
            pruned.plan,
            contender=name,
            keep=keep,
            reconstruct=pruned.reconstruct,
            seconds=seconds,
            kv_cache=self._kv_cache(pruned),
        )

    def pruned(self, asked: Settings, contender: Contender) -> "Pruned":
        """Return a copy that is reconstructed, or merged; what differs in its training alone finds the last one again."""
        own = f"{contender.choose} {contender.merge}"
        key = f"{own} {asked.model_dump_json(exclude={'distill'})}"
        if self._last is None or self._last[0] != key:
            self._last = None  # one copy at a time
            session = replace(self.case.session, settings=asked)
            start = time.perf_counter()
            scores = self._scores(session)
            if contender.merge is not None:
                made = self._merged(asked, contender.merge, scores)
            else:
                made = self._reconstructed(session, contender.choose, scores)
            self._last = key, made._replace(seconds=time.perf_counter() - start)
        return self._last[1]

    def _merged(self, asked: Settings, merge: Merge, scores: HeadScores) -> "Pruned":
        everything = with_keep(asked.plan, 1.0)
        plan = make_plan(scores, self.anatomy, constraints=everything)
        assert asked.plan.keep is not None
        return Pruned(merge(self.case, asked.plan.keep), plan, None, 0.0)

    def _reconstructed(
        self, session: Session, choose: Choose | None, scores: HeadScores
    ) -> "Pruned":
        asked = session.settings
        plan = make_plan(scores, self.anatomy, constraints=asked.plan)
        if choose is not None:
            scores = choose(self.case, self.anatomy, scores, len(plan.remove))
            plan = make_plan(scores, self.anatomy, constraints=asked.plan)
        with restoring(session.model, self.anatomy), self._biases_allowed_by(asked):
            outcome = reconstruct_if_asked(session, self.anatomy, plan, self.case.parts)
            kept = None if outcome is None else outcome.kept
            method, model = None if kept is None else kept.method, copy.deepcopy(session.model)
        return Pruned(model, plan, method, 0.0)

    def trained(self, asked: Settings, pruned: "Pruned", contender: Contender) -> PreTrainedModel:
        """Cut a copy of a reconstructed model, and heal it as ``prune`` does (on a GPU with ``--trainer tf32=true``) or else."""
        session, task = self.case.session, self.case.session.task
        if contender.from_text:
            task = replace(task, distillation=replace(task.distillation, distance=text_loss))
        model = copy.deepcopy(pruned.model)
        student = replace(session, settings=asked, task=task, model=model)
        remove, pad = pruned.plan.remove, pruned.plan.is_padded
        anatomy = cut(model, self.anatomy, remove=remove, pad=pad)
        with _faster_products(model.device):
            if contender.train is not None:
                contender.train(self.case, model, anatomy)
            else:
                teacher = copy_of(replace(session, settings=asked), self.anatomy)
                sample = self.batches[-1].take(PROOF_ROWS)
                heal_cut(student, teacher, anatomy, self.case.parts, sample)[-1].drop()
        return model

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

    def _kv_cache(self, pruned: Pruned) -> tuple[int, int] | None:
        """Cut a copy, and look at what its cache holds."""
        batch, plan = self.batches[0], pruned.plan
        whole = kv_cache_bytes_per_token(self.case.session.model, batch=batch)
        if whole is None:
            return None
        twin = copy.deepcopy(pruned.model)
        cut(twin, self.anatomy, remove=plan.remove, pad=plan.is_padded)
        left = kv_cache_bytes_per_token(twin, batch=batch)
        return None if left is None else (left, whole)

    def cost(self, *, keep: float) -> float:
        """Return what a recipe takes, in forwards of the calibration rows: the mean of one before and one after it."""
        before = self._forward_seconds()
        seconds = self.measure(OURS, CONTENDERS[OURS], keep=keep).seconds
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

    def _predict(self, model: PreTrainedModel, gone: Any) -> Predictions:
        gates = self.anatomy.mask(gone)
        with gated(model, self.anatomy, gates=gates.to(model.device)):
            return predict(model, self.case.session.task, batches=self.batches)


def text_loss(
    student: Float[Tensor, "rows positions vocabulary"],
    _teacher: Tensor,
    inputs: Mapping[str, Tensor],
) -> Float[Tensor, " rows"]:
    """Return the cross-entropy of the next token itself, the mean over the positions of each row: plain fine-tuning."""
    real = inputs["attention_mask"]
    counts = real[:, :-1] * real[:, 1:]
    targets = inputs["input_ids"][:, 1:]
    by_position = cross_entropy(student[:, :-1].transpose(1, 2), targets, reduction="none")
    return by_position.where(counts.bool(), 0.0).sum(-1) / counts.sum(-1).clamp(min=1)


@contextmanager
def _faster_products(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
