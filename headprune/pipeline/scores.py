"""Scores for a model: named by the user, found in the latest run, or computed."""

from pathlib import Path

from headprune.anatomy import Anatomy
from headprune.heads import HeadScores
from headprune.models import fingerprint, versions
from headprune.passes import Pass
from headprune.runs import latest_scores, named_scores
from headprune.scoring import NEED_ROWS
from headprune.scoring import score as score_heads
from headprune.subject import (
    Rows,
    Subject,
    Voice,
    model_note,
    rows_that_chose,
)

# What must agree for the scores of an earlier run to be those that would be computed now.
_SAME_ROWS = ("fingerprint", "max_length", "task")


def find_scores(subject: Subject, anatomy: Anatomy, rows: Rows, *, voice: Voice) -> HeadScores:
    """Return the scores that were named, else the latest run's if they fit, else new ones."""
    recipe = subject.recipe
    mine = fingerprint(subject.model)
    if recipe.scores is not None:
        scores = named_scores(Path(recipe.scores), fingerprint=mine)
        if scores.n and scores.data.get("fingerprint") != rows.note["fingerprint"]:
            voice.say("the scores were computed on other rows than these settings would choose")
        if scores.n and not scores.rows:
            voice.say("careful: the scores don't say which rows they are from; some may report too")
        return scores
    latest = latest_scores()
    if latest is not None:
        scores, path = latest
        fits = (
            scores.model.get("fingerprint") == mine
            and all(scores.data.get(name) == rows.note[name] for name in _SAME_ROWS if scores.n)
            and scores.method == (recipe.method or scores.method)
            and scores.normalize == recipe.normalize
        )
        if fits:
            voice.say(f"scores of the latest run: {path} ({scores.method}, n = {scores.n:,})")
            return scores
        voice.say(
            f"the latest run ({path}) has scores of another model, data or method: scoring anew"
        )
    return compute_scores(subject, anatomy, rows, voice=voice)


def compute_scores(
    subject: Subject, anatomy: Anatomy, rows: Rows | None, *, voice: Voice
) -> HeadScores:
    """Score every head on ``rows``; methods that need no data leave them aside."""
    recipe = subject.recipe
    method = recipe.method or "gradient"
    used = rows if method in NEED_ROWS else None
    found = score_heads(
        subject.model,
        anatomy,
        batches=subject.batches(used.examples) if used else (),
        loss=subject.task.loss,
        method=method,
        normalize=recipe.normalize,
        seed=recipe.seed,
        over=Pass(track=voice.track, say=voice.say),
    )
    digests = {example.input_digest for example in used.examples} if used else set()
    note = {
        "rows": tuple(sorted(digests | set(rows_that_chose(subject)))),
        "data": used.note if used else {},
        "model": model_note(subject),
        "versions": versions(),
    }
    return found.model_copy(update=note)
