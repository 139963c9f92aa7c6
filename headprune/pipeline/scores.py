"""Scores for a model: named by the user, found in the latest run, or computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headprune.anatomy import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.config import Recipe
from headprune.distributed import World
from headprune.errors import HeadpruneError
from headprune.heads import HeadScores
from headprune.journal import Journal, open_journal
from headprune.models import fingerprint, versions
from headprune.passes import Pass
from headprune.pipeline.course import check_course, method_of, steps_fit, steps_of
from headprune.pipeline.rounds import race, score_by_metric, score_with_steps
from headprune.placement import input_device
from headprune.runs import FOLDER, latest_scores, named_scores
from headprune.scoring import DEPEND_ON_BATCHES, DIFFERENTIATE, NEED_NO_ROWS
from headprune.subject import (
    Rows,
    Subject,
    Voice,
    model_note,
    rows_that_chose,
)
from headprune.tasks.distill import NOTHING, Goal
from headprune.tasks.rows import noted_rows

# What must agree for the scores of an earlier run to be those that would be computed now.
_SAME_ROWS = ("fingerprint", "max_length", "task")


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
    if subject.recipe.scores is not None:
        return Scored(_named(subject, rows, path=Path(subject.recipe.scores), voice=voice))
    latest = latest_scores(subject.recipe.method, say=voice.say)
    if latest is not None:
        scores, path = latest
        if _fits(scores, subject, rows):
            how = f"{scores.method}, raced" if scores.race else scores.method
            voice.say(f"scores of the latest run: {path} ({how}, n = {scores.n:,})")
            steps = steps_of(subject.recipe)
            if scores.steps is None and steps > 1 and not scores.race:
                voice.say(f"made once; --steps {steps} scores again as heads go")
            return Scored(scores)
        voice.say(
            f"the latest run ({path}) has scores of another model, data, method or cut: scoring anew"
        )
    return compute_scores(subject, anatomy, rows, voice=voice, keep_parts=keep_parts)


def _named(subject: Subject, rows: Rows, *, path: Path, voice: Voice) -> HeadScores:
    """Return the scores in a file, and say in what they aren't those that the settings would make."""
    recipe = subject.recipe
    scores = named_scores(path, fingerprint=fingerprint(subject.model))
    if scores.n and scores.data.get("fingerprint") != rows.note["fingerprint"]:
        voice.say("the scores were computed on other rows than these settings would choose")
    if scores.n and not scores.rows:
        voice.say("careful: the scores don't say which rows they are from; some may report too")
    if scores.race is not None and scores.race.keep != recipe.keep:
        voice.say(
            f"careful: these heads raced for --keep {scores.race.keep:g}, not for another cut"
        )
    if not steps_fit(scores, recipe):
        how = "once"
        if scores.steps:
            between = f"mended ({scores.steps.mended})" if scores.steps.mended else "not mended"
            how = f"in {scores.steps.count} steps for {scores.steps.budget}, {between} in between"
        voice.say(f"careful: these heads were scored {how}, not as these settings would")
    if recipe.method not in (None, scores.method) or recipe.objective != scores.objective:
        voice.say(
            f"careful: these are {scores.method} scores by {scores.objective}, "
            f"and the settings say {method_of(recipe)} by {recipe.objective}"
        )
    return scores


def _fits(scores: HeadScores, subject: Subject, rows: Rows) -> bool:
    """Whether scores are those that the settings would make now; without a method any is taken."""
    recipe = subject.recipe
    return (
        scores.model.get("fingerprint") == fingerprint(subject.model)
        and all(scores.data.get(name) == rows.note[name] for name in _SAME_ROWS if scores.n)
        and scores.method == (recipe.method or scores.method)
        and scores.normalize == recipe.normalize
        and scores.objective == recipe.objective
        and (scores.race is None or (scores.race.keep == recipe.keep and not recipe.sites))
        and steps_fit(scores, recipe)
        and (
            scores.method not in DEPEND_ON_BATCHES
            or scores.data.get("batch_size", "not noted") == recipe.batch_size
        )
    )


def compute_each(
    subject: Subject,
    recipes: Mapping[str, Recipe],
    anatomy: Anatomy,
    rows: Rows | None,
    *,
    voice: Voice,
    world: World | None = None,
) -> dict[str, Scored]:
    """Score by several methods; a pass over the data that several are made of is run once, and found again in the journal."""
    found: dict[str, Scored] = {}
    goal = subject.goal(rows.examples) if rows else None
    for method, recipe in recipes.items():
        if len(recipes) > 1:
            voice.say(f"{method}:")
        by_one = replace(subject, recipe=recipe)
        found[method] = compute_scores(
            by_one, anatomy, rows, voice=voice, world=world, is_first=not found, goal=goal
        )
    return found


def compute_scores(
    subject: Subject,
    anatomy: Anatomy,
    rows: Rows | None,
    *,
    voice: Voice,
    keep_parts: bool = True,
    world: World | None = None,
    is_first: bool = True,
    goal: Goal | None = None,
) -> Scored:
    """Score every head on ``rows``; methods that need no data leave them aside.

    What is done lies beside the run, batch by batch: stopped at any moment, the same command goes on from there. Of any but the
    first of several methods what is found there isn't an earlier run's alone, and nothing is said of it.
    """
    recipe, world = subject.recipe, world or World()
    check_course(recipe, world=world)
    method = method_of(recipe)
    used = None if method in NEED_NO_ROWS else rows
    goal = (goal or subject.goal(used.examples)) if used else NOTHING
    batches = goal.drawn if method in DIFFERENTIATE else goal.batches
    journal = _journal(subject, anatomy, batches) if used and keep_parts else None
    done = journal.count() if journal else 0
    world.wait()  # before the first result of anyone is counted as an earlier run's
    if done and is_first:
        voice.say(f"going on with a run that was stopped; batches done: {done}")
    over = Pass(voice.track, voice.say, journal, world, recipe.compile)
    try:
        if recipe.until is not None and used is not None:
            found = race(subject, anatomy, used, over=over)
        elif recipe.objective == "metric":
            found = score_by_metric(subject, anatomy, goal, over=over)
        else:
            found = score_with_steps(
                subject.model, anatomy, goal, recipe=recipe, method=method, over=over
            )
    except KeyboardInterrupt as stopped:
        if journal is not None and (done := journal.count()):
            stopped.add_note(_resumable(done))
        raise
    except HeadpruneError:
        if journal is not None and (done := journal.count()):
            voice.say(_resumable(done))
        raise
    data = dict(used.note) if used else {}
    if method in DEPEND_ON_BATCHES:
        data["batch_size"] = recipe.batch_size
    note = {
        "rows": noted_rows(used.examples if used else (), earlier=rows_that_chose(subject)),
        "data": data,
        "model": model_note(subject),
        "versions": versions(),
    }
    return Scored(found.model_copy(update=note), journal)


def _resumable(done: int) -> str:
    return f"batches done: {done}; the same command goes on from there"


def _journal(subject: Subject, anatomy: Anatomy, batches: Sequence[Batch]) -> Journal:
    """Return the journal of these scores: another model, other rows or settings, and it is another one.

    The method is none of these: passes have names, and those of the same name are the same, whatever is made of them.
    """
    recipe = subject.recipe
    facts = {
        "seed": recipe.seed,
        "heads": [str(head) for head in anatomy.heads],
        "model": model_note(subject),
        "batches": fingerprint_of_batches(batches),
        "objective": recipe.objective,
        "task": subject.task.name,
        "device": input_device(subject.model).type,
        "compile": recipe.compile,
        "race": [recipe.keep, recipe.max_work] if recipe.until else None,
        "versions": versions(),
    }
    return open_journal(Path(recipe.run) if recipe.run else FOLDER, facts=facts)
