"""Where scores lie between commands: numbered run directories, the latest last, nothing overwritten."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headprune.analysis.roles import Roles
from headprune.artefact import Artefact, read_artefact
from headprune.errors import CheckpointError, PlanError
from headprune.plans import HeadScores
from headprune.runtime.files import write_text
from headprune.runtime.targets import exclusive, naming, refuse_unwritable

FOLDER = Path("headprune-runs")
SCORES = "scores.json"
ROLES_FILE = "roles.json"
SIMILARITY_FILE = "similarity.json"
COMPARISON_FILE = "compare.json"
LATEST = "latest"
"""What ``--scores`` calls the scores of the run with the highest number."""
_ANY_SCORES = "scores*.json"


def refuse_used_run(run: str, *, file: str = SCORES) -> None:
    """Refuse, before any work, a run directory that holds scores (or ``file``) already.

    Raises:
        CheckpointError: It does.
    """
    path = Path(run) / file
    refuse_unwritable(path, where=f"`run_dir={run}`")
    if path.exists():
        raise CheckpointError(
            f"{run} holds {path.stem} already",
            where=f"`run_dir={run}`",
            hint="choose another `run_dir`",
        )


@contextmanager
def unused_run(run: str | None, *, file: str = SCORES) -> Iterator[None]:
    """Hold a run directory from the start of the work to its end; without one the next numbered is taken when ``file`` is there.

    Raises:
        CheckpointError: It holds such a file already, or another process holds it, or it can't be written.
    """
    if run is None:
        refuse_unwritable(FOLDER / "000-run" / file, where=str(FOLDER))
        next_run("run")
        yield
        return
    refuse_used_run(run, file=file)
    with exclusive(Path(run), where=f"`run_dir={run}`"):
        yield


def write_scores(scores: Sequence[HeadScores], run: str | None) -> tuple[Path, ...]:
    """Write scores to ``run``, or to the next numbered directory; returns the files.

    Those by the first method are the run's own; those by others lie beside them, their method in the name.

    Raises:
        CheckpointError: ``run`` holds scores already, or can't be written.
    """
    first, *others = scores
    if run is not None:
        refuse_used_run(run)
    folder = make_next_run(_word(first.method)) if run is None else Path(run)
    written = {folder / file_name(other.method): other for other in others}
    written[folder / SCORES] = first  # the last: a directory that has it has all
    for path, content in written.items():
        write_text(path, content.to_json(), overwrite=False)
    return folder / SCORES, *(path for path in written if path.name != SCORES)


def write_roles(roles: Roles, run: str | None) -> Path:
    """Write what heads do to ``run``, or to the next numbered directory; returns the file.

    Raises:
        CheckpointError: ``run`` holds roles already, or can't be written.
    """
    return write_document(roles, run, file=ROLES_FILE)


def write_document(document: Artefact, run: str | None, *, file: str) -> Path:
    """Write a document to ``run``, or to the next numbered directory, which is called like the file; returns the file.

    Raises:
        CheckpointError: ``run`` holds such a file already, or can't be written.
    """
    if run is not None:
        refuse_used_run(run, file=file)
    path = (make_next_run(Path(file).stem) if run is None else Path(run)) / file
    write_text(path, document.to_json(), overwrite=False)
    return path


def make_next_run(name: str) -> Path:
    """Make the next numbered directory; another process that does so at the same time gets another number."""
    with naming(FOLDER):
        while True:
            folder = next_run(name)
            folder.parent.mkdir(exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder


def file_name(method: str) -> str:
    """Return the name of the file of a method's scores, beside ``scores.json`` of a run's first."""
    return f"scores.{_word(method)}.json"


def _word(method: str) -> str:
    return method.replace(":", "-")


def next_run(name: str) -> Path:
    """Return the next numbered directory, for a run of this name."""
    last = max(_numbered("*-*"), default=(0, FOLDER))[0]
    return FOLDER / f"{last + 1:03d}-{name}"


def scores_file(named: str, *, method: str) -> Path:
    """Return the file that ``--scores`` names; for ``latest`` that of the run with the highest number: of several the method's.

    Raises:
        CheckpointError: There is no earlier run.
        PlanError: The latest run has no scores by the method.
    """
    if named != LATEST:
        return Path(named)
    files = sorted(_numbered(f"*-*/{_ANY_SCORES}"))
    if not files:
        raise CheckpointError(
            f"no earlier run has left scores in {FOLDER}",
            where=f"`scores={LATEST}`",
            hint="score first: headprune score MODEL; or leave `scores` out",
        )
    folder = files[-1][1].parent
    candidates = [folder / file_name(method), folder / SCORES]
    for path in candidates:
        if path.exists():
            return path
    names = sorted(path.name for _number, path in files if path.parent == folder)
    raise PlanError(
        f"the latest run ({folder}) has no scores by {method}: it has {', '.join(names)}",
        where=f"`scores={LATEST}`",
        hint="say which `method` is meant, or name a file: `scores=FILE`",
    )


def named_scores(path: Path, *, fingerprint: str) -> HeadScores:
    """Read scores that a user names; they must be of the model with this fingerprint.

    Raises:
        CheckpointError: It is no scores file.
        PlanError: The scores are of another model.
    """
    scores = read_artefact(HeadScores, path)
    if scores.model.get("fingerprint", fingerprint) != fingerprint:
        raise PlanError(
            f"the scores are of another model ({scores.model.get('name')})",
            where=f"`scores={path}`",
            hint="score this one: headprune score MODEL",
        )
    return scores


def roles_file(named: str) -> Path:
    """Return the file that ``--roles`` names; for ``latest`` that of the run with the highest number.

    Raises:
        CheckpointError: There is no earlier run.
    """
    files = sorted(_numbered(f"*-*/{ROLES_FILE}")) if named == LATEST else [(0, Path(named))]
    if not files:
        raise CheckpointError(
            f"no earlier run has left roles in {FOLDER}",
            where=f"`roles={LATEST}`",
            hint="measure them first: headprune analyze MODEL; or leave `roles` out",
        )
    return files[-1][1]


def named_roles(path: Path, *, fingerprint: str | None) -> Roles:
    """Read roles that a user names; they must be of the model with this fingerprint, where that is known.

    Raises:
        CheckpointError: It is no roles file.
        PlanError: The roles are of another model.
    """
    roles = read_artefact(Roles, path)
    if fingerprint is not None and roles.model.get("fingerprint", fingerprint) != fingerprint:
        raise PlanError(
            f"the roles are of another model ({roles.model.get('name')})",
            where=f"`roles={path}`",
            hint="measure this one's: headprune analyze MODEL; or leave `roles` out",
        )
    return roles


def _numbered(pattern: str) -> list[tuple[int, Path]]:
    """Return what the pattern finds in numbered directories, each with its number."""
    if FOLDER.is_dir():
        with naming(FOLDER):
            next(FOLDER.iterdir(), None)  # what can't be looked into isn't empty
    found = [(path.relative_to(FOLDER).parts[0], path) for path in FOLDER.glob(pattern)]
    numbers = [(name.partition("-")[0], path) for name, path in found]
    return [(int(number), path) for number, path in numbers if number.isdecimal()]
