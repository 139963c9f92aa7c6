"""``compare``: roles and scores that lie in files, read and compared. No model is loaded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from headprune.analysis.compare import Subject, compare, origin_of
from headprune.analysis.comparison import Comparison
from headprune.analysis.roles import Roles
from headprune.artefact import read_artefact
from headprune.errors import CheckpointError, ConfigError
from headprune.plans import HeadScores, PruningPlan
from headprune.runs import (
    ROLES_FILE,
    SCORES,
    refuse_used_run,
    score_files,
    write_document,
)
from headprune.untrusted.documents import read_json

COMPARISON = "compare.json"
_HINT = "name roles.json, scores.json, the directory of a run, or what headprune prune saved"


def compare_documents(named: Sequence[str], *, run_dir: str | None) -> tuple[Comparison, Path]:
    """Compare what documents say of heads, and write ``compare.json``.

    Args:
        named: Files (``roles.json``, ``scores.json``), or directories that hold some.
        run_dir: Where it is written; None stands for the next numbered directory.

    Raises:
        CheckpointError: There are no such documents, or ``run_dir`` can't be written.
        ConfigError: Fewer than two are named.
    """
    if len(named) < 2:
        raise ConfigError(
            "two or more are compared",
            where=" ".join(named) or "headprune compare",
            hint=_HINT,
        )
    if run_dir is not None:
        refuse_used_run(run_dir, file=COMPARISON)
    names = _names([Path(name) for name in named])
    comparison = compare([_read(Path(path), name) for path, name in zip(named, names, strict=True)])
    return comparison, write_document(comparison, run_dir, file=COMPARISON)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each: that of its directory, or of a file of another name; the whole path where that isn't enough."""
    short = [
        (path if path.name not in (SCORES, ROLES_FILE) else path.parent).resolve().stem
        for path in paths
    ]
    counts = Counter(short)
    names = [
        name if counts[name] == 1 else str(path) for name, path in zip(short, paths, strict=True)
    ]
    repeated = Counter(names)
    return [
        name if repeated[name] == 1 else f"{name} ({index})" for index, name in enumerate(names, 1)
    ]


def _read(path: Path, name: str) -> Subject:
    documents = tuple(_documents(path))
    if not documents:
        raise CheckpointError(
            f"{path} holds no roles and no scores" if path.exists() else f"there is no {path}",
            where=str(path),
            hint=_HINT,
        )
    if len({origin_of(one) for one in documents}) > 1:
        raise CheckpointError(
            "its documents are of several models",
            where=str(path),
            hint="name one of its files, or keep each model's in a directory of its own",
        )
    roles = [one for one in documents if isinstance(one, Roles)]
    plan = path / "plan.json"
    removed = read_artefact(PruningPlan, plan).remove if plan.is_file() else ()
    return Subject(
        name,
        frozenset(head for one in documents for head in one.heads) - {*removed},
        roles[0] if roles else None,
        tuple(one for one in documents if isinstance(one, HeadScores)),
    )


def _documents(path: Path) -> Iterator[Roles | HeadScores]:
    """Yield what a file, or the files of a directory, say of heads."""
    if path.is_dir():
        if (roles := path / ROLES_FILE).is_file():
            yield read_artefact(Roles, roles)
        yield from (read_artefact(HeadScores, file) for file in score_files(path))
    elif path.exists() and "measures" in read_json(path, hint=_HINT):
        yield read_artefact(Roles, path)
    elif path.exists():
        yield read_artefact(HeadScores, path)
