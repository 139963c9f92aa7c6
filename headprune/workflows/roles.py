"""Roles of heads for a plan: read from a file that the user names, or measured on a few of the calibration rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, Role, get_role
from headprune.analysis.roles import Roles
from headprune.batch import Batch
from headprune.config import Constraints, Settings
from headprune.config.checks import NO_ROLES
from headprune.errors import HeadpruneError, UnsupportedError
from headprune.passes import Progress
from headprune.runs import named_roles, roles_file
from headprune.runtime.journal import Journal
from headprune.runtime.local import published_name
from headprune.tasks.rows import fingerprint as fingerprint_of_rows
from headprune.workflows.analyze import Seen, measure_roles
from headprune.workflows.reading import Rows
from headprune.workflows.session import Session
from headprune.workflows.stepwise import with_protected_heads

NUM_ROWS, NUM_SEQUENCES = 100, 50
"""Rows that are looked at, at most, and sequences that are made up."""
_MOST_PAIRS = NUM_ROWS * 128**2
"""Of positions: attention weights of each head. Longer rows are fewer."""
_SHOWN = 4


@dataclass(frozen=True)
class FoundRoles:
    """Roles, if any are known, and the journal of their measurement: to be dropped once they are safe elsewhere."""

    roles: Roles | None = None
    journal: Journal | None = None

    def discard_journal(self) -> None:
        """Delete the journal, which an interrupted run would resume from."""
        if self.journal is not None:
            self.journal.drop()


def find_roles(session: Session, rows: Rows, *, shows: bool, keep_parts: bool = True) -> FoundRoles:
    """Return the roles of the file that the settings name, or measure those to protect and, with ``shows``, all that cost little.

    Args:
        session: The model, with its settings.
        rows: Calibration rows; the first of them are looked at.
        shows: Whether roles are of use that aren't protected; if these can't be measured, that is reported, and there are none.
        keep_parts: Whether finished batches are kept on disk, to resume an interrupted run.

    Raises:
        PlanError: The roles of the file are of another model.
        UnsupportedError: Roles to protect can't be measured.
    """
    settings, notify = session.settings, session.progress.notify
    protected = [get_role(name) for name in settings.plan.protect_role]
    if settings.run.roles == NO_ROLES or not (protected or shows):
        return FoundRoles()
    if settings.run.roles is not None:
        fingerprint = session.note["fingerprint"]
        return FoundRoles(
            roles_by_name(settings, fingerprint=fingerprint, progress=session.progress)
        )
    cheap = [role for role in ROLES.values() if role.sign and role.reads in ("rows", "repeats")]
    chosen = list(dict.fromkeys([*protected, *(cheap if shows else ())]))
    try:
        roles, journal = _measured(
            session, chosen, rows, must=bool(protected), keep_parts=keep_parts
        )
    except HeadpruneError as error:
        if protected:
            raise
        notify(f"no roles of heads are shown: {error.what}")
        return FoundRoles()
    if not roles.measures and not protected:
        notify(f"no roles of heads are shown: {next(iter(roles.undefined.values()))}")
        return FoundRoles()
    _tell_protected(roles, settings, session.progress)
    return FoundRoles(roles, journal)


def protecting(session: Session, roles: Roles | None) -> Constraints:
    """Return the settings' constraints, with all heads protected that are to be kept for what they are."""
    model, plan, notify = session.model, session.settings.plan, session.progress.notify
    return with_protected_heads(model, session.anatomy, plan, roles=roles, notify=notify)


def roles_by_name(settings: Settings, *, fingerprint: str | None, progress: Progress) -> Roles:
    """Return the roles of the file that the settings name, which must be of the model with this fingerprint."""
    path = roles_file(str(settings.run.roles))
    roles = named_roles(path, fingerprint=fingerprint)
    progress.notify(f"roles: {path} ({len(roles.names)} roles)")
    _tell_protected(roles, settings, progress)
    data = {**roles.data, "file": published_name(str(path))}
    return roles.model_copy(update={"data": data})


def _measured(
    session: Session, chosen: list[Role], rows: Rows, *, must: bool, keep_parts: bool
) -> tuple[Roles, Journal | None]:
    """Measure roles on a few rows."""
    few = Seen()
    if not {role.reads for role in chosen} <= {"repeats", "weights"}:
        few = _few(session, rows, must=must)
    made_up = min(session.settings.analyze.num_sequences, NUM_SEQUENCES)
    spec = session.settings.analyze.model_copy(update={"num_sequences": made_up})
    return measure_roles(session, chosen, few, spec=spec, keep_parts=keep_parts)


def _few(session: Session, rows: Rows, *, must: bool) -> Seen:
    """Return the first rows, as many as have few enough attention weights; one of any length, where it is a must."""
    count = min(NUM_ROWS, len(rows.examples))
    batches = session.batches(rows.examples[:count])
    while count > 1 and _num_pairs(batches) > _MOST_PAIRS:
        count //= 2
        batches = session.batches(rows.examples[:count])
    if _num_pairs(batches) > _MOST_PAIRS and not must:
        raise UnsupportedError(
            f"rows of {batches[0].num_tokens // batches[0].num_rows:,} tokens have many attention weights",
            where="`roles`",
            hint="headprune analyze MODEL, then `roles=latest`",
        )
    examples = rows.examples[:count]
    note = {**rows.note, "fingerprint": fingerprint_of_rows(examples), "n": count}
    return Seen(note, batches, Vocabulary.of(session.tokenizer, batches))


def _num_pairs(batches: Sequence[Batch]) -> int:
    """Return how many attention weights each head has on some batches."""
    return sum(batch.num_tokens**2 // batch.num_rows for batch in batches)


def _tell_protected(roles: Roles, settings: Settings, progress: Progress) -> None:
    """Report how many heads are kept for each role, and which can't be decided."""
    for name in settings.plan.protect_role:
        heads = roles.heads_with(name)
        names = ", ".join(map(str, heads[:_SHOWN])) + (", ..." if len(heads) > _SHOWN else "")
        noun = ROLES[name].noun
        if heads:
            progress.notify(
                f"kept for their role: {len(heads)} {noun}{'' if len(heads) == 1 else 's'} ({names})"
            )
        elif roles.is_undecided(name):
            progress.notify(f"careful: too few rows tell {noun}s, so none is kept for that")
        else:
            progress.notify(f"careful: the model has no {noun}s, so none is kept for that")
