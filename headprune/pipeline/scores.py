"""Scores for a model: named by the user, found in the latest run, or computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headprune.anatomy import Anatomy
from headprune.batch import Batch, fingerprint_of_batches
from headprune.distributed import World
from headprune.errors import HeadpruneError
from headprune.heads import HeadScores
from headprune.journal import Journal, open_journal
from headprune.models import fingerprint, versions
from headprune.passes import Pass
from headprune.runs import FOLDER, latest_scores, named_scores
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
        return Scored(scores)
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
    recipe = subject.recipe
    method = recipe.method or "gradient"
    used = rows if method in NEED_ROWS else None
    batches = subject.batches(used.examples) if used else ()
    journal = _journal(subject, anatomy, batches, method=method) if used and keep_parts else None
    if journal is not None and (done := journal.count()):
        voice.say(
            f"going on with a run that was stopped: {done} of {len(batches)} batches are done"
        )
    try:
        found = score_heads(
            subject.model,
            anatomy,
            batches=batches,
            loss=subject.task.loss,
            method=method,
            normalize=recipe.normalize,
            seed=recipe.seed,
            over=Pass(
                track=voice.track,
                say=voice.say,
                journal=journal,
                world=world or World(),
                compile=recipe.compile,
            ),
        )
    except (KeyboardInterrupt, HeadpruneError):
        if journal is not None and (done := journal.count()):
            voice.say(
                f"{done} of {len(batches)} batches are done: the same command goes on from there"
            )
        raise
    digests = {example.input_digest for example in used.examples} if used else set()
    note = {
        "rows": tuple(sorted(digests | set(rows_that_chose(subject)))),
        "data": used.note if used else {},
        "model": model_note(subject),
        "versions": versions(),
    }
    return Scored(found.model_copy(update=note), journal)


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
        "threads": torch.get_num_threads(),
        "compile": recipe.compile,
        "versions": versions(),
    }
    return open_journal(Path(recipe.run) if recipe.run else FOLDER, facts=facts)
