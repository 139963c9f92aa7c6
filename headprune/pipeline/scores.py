"""Scores for a model: named by the user, found in the latest run, or computed."""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, fingerprint_of_batches
from headprune.config import Recipe
from headprune.distributed import World
from headprune.errors import ConfigError, HeadpruneError
from headprune.heads import HeadId, HeadMask, HeadScores, Race
from headprune.journal import Journal, open_journal
from headprune.masking import gated
from headprune.models import fingerprint, versions
from headprune.passes import Pass
from headprune.runs import FOLDER, latest_scores, named_scores
from headprune.scoring import DEPEND_ON_BATCHES, NEED_NO_ROWS, race_heads
from headprune.scoring import score as score_heads
from headprune.selection import Constraints, score_in_steps
from headprune.subject import (
    Rows,
    Subject,
    Voice,
    model_note,
    rows_that_chose,
)

# What must agree for the scores of an earlier run to be those that would be computed now.
_SAME_ROWS = ("fingerprint", "max_length", "task")
# They run many masks, from a model that has all heads; let heads go together by themselves; or don't run the model at all.
_ONCE = ("ablation", "shapley", "gates", *NEED_NO_ROWS)
# Of any decision of a race being wrong.
_ERROR_PROBABILITY = 0.05


@dataclass(frozen=True)
class Scored:
    """Scores, and the journal of their computation: to be dropped once they are safe elsewhere."""

    scores: HeadScores
    journal: Journal | None = None

    def kept_elsewhere(self) -> None:
        """Drop what an interrupted run would have gone on from."""
        if self.journal is not None:
            self.journal.drop()


def find_scores(
    subject: Subject, anatomy: Anatomy, rows: Rows, *, voice: Voice, keep_parts: bool
) -> Scored:
    """Return the scores that were named, else the latest run's if they fit, else new ones.

    Args:
        subject: The model, with its recipe.
        anatomy: Where its heads are.
        rows: What to score on.
        voice: How to talk meanwhile.
        keep_parts: Whether parts of new scores are kept on disk as they are computed.
    """
    recipe = subject.recipe
    mine = fingerprint(subject.model)
    if recipe.scores is not None:
        scores = named_scores(Path(recipe.scores), fingerprint=mine)
        if scores.n and scores.data.get("fingerprint") != rows.note["fingerprint"]:
            voice.say("the scores were computed on other rows than these settings would choose")
        if scores.n and not scores.rows:
            voice.say("careful: the scores don't say which rows they are from; some may report too")
        if scores.race is not None and scores.race.keep != recipe.keep:
            voice.say(
                f"careful: these heads raced for --keep {scores.race.keep:g}, not for another cut"
            )
        if not steps_fit(scores, recipe):
            how = (
                f"in {scores.steps.count} steps for --keep {scores.steps.keep:g}"
                if scores.steps
                else "once"
            )
            voice.say(f"careful: these heads were scored {how}, not as these settings would")
        return Scored(scores)
    latest = latest_scores()
    if latest is not None:
        scores, path = latest
        fits = (
            scores.model.get("fingerprint") == mine
            and all(scores.data.get(name) == rows.note[name] for name in _SAME_ROWS if scores.n)
            and scores.method == (recipe.method or scores.method)
            and scores.normalize == recipe.normalize
            and (scores.race is None or (scores.race.keep == recipe.keep and not recipe.sites))
            and steps_fit(scores, recipe)
            and (
                scores.method not in DEPEND_ON_BATCHES
                or scores.data.get("batch_size", "not noted") == recipe.batch_size
            )
        )
        if fits:
            how = f"{scores.method}, raced" if scores.race else scores.method
            voice.say(f"scores of the latest run: {path} ({how}, n = {scores.n:,})")
            return Scored(scores)
        voice.say(
            f"the latest run ({path}) has scores of another model, data or method: scoring anew"
        )
    return compute_scores(subject, anatomy, rows, voice=voice, keep_parts=keep_parts)


def compute_scores(
    subject: Subject,
    anatomy: Anatomy,
    rows: Rows | None,
    *,
    voice: Voice,
    keep_parts: bool = True,
    world: World | None = None,
) -> Scored:
    """Score every head on ``rows``; methods that need no data leave them aside.

    What is done lies beside the run, batch by batch: stopped at any moment, the same command goes on from there.
    """
    recipe, world = subject.recipe, world or World()
    check_course(recipe, world=world)
    method = recipe.method or "gradient"
    used = None if method in NEED_NO_ROWS else rows
    batches = subject.batches(used.examples) if used else ()
    journal = _journal(subject, anatomy, batches, method=method) if used and keep_parts else None
    done = journal.count() if journal else 0
    world.wait()  # before the first result of anyone is counted as an earlier run's
    if done:
        voice.say(f"going on with a run that was stopped; batches done: {done}")
    over = Pass(voice.track, voice.say, journal, world, recipe.compile)
    try:
        if recipe.until is not None and used is not None:
            found = _race(subject, anatomy, used, over=over)
        else:
            found = score_with_steps(
                subject.model,
                anatomy,
                batches,
                recipe=recipe,
                loss=subject.task.loss,
                method=method,
                over=over,
            )
    except (KeyboardInterrupt, HeadpruneError):
        if journal is not None and (done := journal.count()):
            voice.say(f"batches done: {done}; the same command goes on from there")
        raise
    data = dict(used.note) if used else {}
    if method in DEPEND_ON_BATCHES:
        data["batch_size"] = recipe.batch_size
    digests = {example.input_digest for example in used.examples} if used else set()
    note = {
        "rows": tuple(sorted(digests | set(rows_that_chose(subject)))),
        "data": data,
        "model": model_note(subject),
        "versions": versions(),
    }
    return Scored(found.model_copy(update=note), journal)


def constraints_of(recipe: Recipe) -> Constraints:
    """Return what a recipe says of the plan."""
    return Constraints(
        keep=1.0 if recipe.keep is None else recipe.keep,
        min_heads=recipe.min_heads,
        protect=recipe.protect,
        uniform=recipe.uniform,
        gqa=recipe.gqa,
        sites=recipe.sites,
    )


def check_course(recipe: Recipe, *, world: World | None = None) -> None:
    """Refuse a race that isn't run by ablation, or not for a cut through all heads; steps that lead nowhere; a shared training.

    Raises:
        ConfigError: It is such a race, there are such steps, or several processes would train the same gates.
    """
    if recipe.method == "gates" and world is not None and world.size > 1:
        raise ConfigError(
            f"gates are trained step after step, in one process, and a launcher started {world.size}",
            where="--method gates",
            hint="leave out torchrun or accelerate launch, or use another method",
        )
    if recipe.steps > 1 and (recipe.keep is None or recipe.until):
        raise ConfigError(
            "steps lead to a keep ratio, and are no race",
            where=f"--steps {recipe.steps}",
            hint="say --keep 0.5, for example, and leave out --until",
        )
    if recipe.steps > 1 and (recipe.method in _ONCE or recipe.normalize != "none"):
        raise ConfigError(
            "in steps heads are scored as they are, all that are left in one pass",
            where=f"--steps {recipe.steps}",
            hint=f"use another method than {', '.join(_ONCE)}, and leave out --normalize",
        )
    if recipe.until is not None and (recipe.keep is None or recipe.method != "ablation"):
        raise ConfigError(
            "heads race by ablation, for the places that a keep ratio leaves",
            where="--until decided",
            hint="say --method ablation and --keep 0.7, for example",
        )
    if recipe.until is not None and (recipe.normalize != "none" or recipe.sites):
        raise ConfigError(
            "a race decides for one cut through the scores of all heads as they are",
            where="--until decided",
            hint="leave out --normalize and --sites, or score without --until",
        )


def steps_fit(scores: HeadScores, recipe: Recipe) -> bool:
    """Whether scores were made in the steps that a recipe asks for; one that asks for none takes those for its own cut."""
    if scores.steps is None or recipe.keep is None:
        return scores.steps is None and recipe.steps == 1
    return (
        recipe.steps in (1, scores.steps.count)
        and scores.steps.keep == recipe.keep
        and scores.steps.constraints == constraints_of(recipe).as_dict()
    )


def score_with_steps(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batches: Sequence[Batch],
    *,
    recipe: Recipe,
    loss: Loss,
    method: str,
    over: Pass,
) -> HeadScores:
    """Score the heads once, or as often as the recipe has steps, without those that went."""

    def rescore(gone: Collection[HeadId]) -> HeadScores:
        mask = HeadMask.without(gone, anatomy.heads)
        journal = over.journal
        if gone:
            over.tell(f"scoring the {len(anatomy.heads) - len(gone)} heads that are left")
            names = ",".join(map(str, gone)).encode()
            journal = journal and journal.within(hashlib.sha256(names).hexdigest()[:16])
        gates = torch.tensor(mask.values, device=model.device)
        with gated(model, anatomy, gates=gates) if gone else nullcontext():
            return score_heads(
                model,
                anatomy,
                batches=batches,
                loss=loss,
                method=method,
                normalize=recipe.normalize,
                seed=recipe.seed,
                over=replace(over, journal=journal),
            )

    if recipe.steps == 1:
        return rescore(())
    constraints = constraints_of(recipe)
    return score_in_steps(anatomy, rescore=rescore, constraints=constraints, steps=recipe.steps)


def _race(subject: Subject, anatomy: Anatomy, rows: Rows, *, over: Pass) -> HeadScores:
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
        over=over,
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


def _journal(
    subject: Subject, anatomy: Anatomy, batches: Sequence[Batch], *, method: str
) -> Journal:
    """Return the journal of these scores: another model, other rows or settings, and it is another one."""
    recipe = subject.recipe
    facts = {
        "method": method,
        "seed": recipe.seed,
        "heads": [str(head) for head in anatomy.heads],
        "model": model_note(subject),
        "batches": fingerprint_of_batches(batches),
        "task": subject.task.name,
        "device": subject.model.device.type,
        "compile": recipe.compile,
        "race": [recipe.keep, recipe.max_work] if recipe.until else None,
        "versions": versions(),
    }
    return open_journal(Path(recipe.run) if recipe.run else FOLDER, facts=facts)
