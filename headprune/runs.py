"""Where scores lie between commands: numbered run directories, the latest last, nothing overwritten."""

from pathlib import Path

from headprune.atomic import write_text
from headprune.errors import CheckpointError, PlanError
from headprune.heads import HeadScores, read_artefact

FOLDER = Path("headprune-runs")
SCORES = "scores.json"


def refuse_used_run(run: str) -> None:
    """Refuse, before any work, a run directory that holds scores already.

    Raises:
        CheckpointError: It does.
    """
    if (Path(run) / SCORES).exists():
        raise CheckpointError(
            f"{run} holds scores already", where=f"--run {run}", hint="choose another --run"
        )


def write_scores(scores: HeadScores, run: str | None) -> Path:
    """Write scores to ``run``, or to the next numbered directory; returns the file.

    Raises:
        CheckpointError: ``run`` holds scores already, or can't be written.
    """
    if run is not None:
        path = Path(run) / SCORES
        refuse_used_run(run)
    else:
        path = next_run(scores.method.replace(":", "-")) / SCORES
    write_text(path, scores.to_json())
    return path


def next_run(name: str) -> Path:
    """Return the next numbered directory, for a run of this name."""
    last = max(_numbered("*-*"), default=(0, FOLDER))[0]
    return FOLDER / f"{last + 1:03d}-{name}"


def latest_scores() -> tuple[HeadScores, Path] | None:
    """Return the scores of the run with the highest number, if there is one."""
    found = sorted(_numbered(f"*-*/{SCORES}"))
    return (read_artefact(HeadScores, found[-1][1]), found[-1][1]) if found else None


def named_scores(path: Path, *, fingerprint: str) -> HeadScores:
    """Read scores that a user names.

    Args:
        path: The file.
        fingerprint: Of the model that they must be of.

    Raises:
        CheckpointError: It is no scores file.
        PlanError: The scores are of another model.
    """
    scores = read_artefact(HeadScores, path)
    if scores.model.get("fingerprint", fingerprint) != fingerprint:
        raise PlanError(
            f"the scores are of another model ({scores.model.get('name')})",
            where=f"--scores {path}",
            hint="score this one: headprune score MODEL",
        )
    return scores


def _numbered(pattern: str) -> list[tuple[int, Path]]:
    """Return what the pattern finds in numbered directories, each with its number."""
    found = [(path.relative_to(FOLDER).parts[0], path) for path in FOLDER.glob(pattern)]
    numbers = [(name.partition("-")[0], path) for name, path in found]
    return [(int(number), path) for number, path in numbers if number.isdecimal()]
