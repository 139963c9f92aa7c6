"""``compare``: roles and scores that lie in files, read and compared. No model is loaded."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from headprune.analysis.compare import Subject, compare
from headprune.analysis.comparison import Comparison
from headprune.analysis.roles import Roles
from headprune.errors import CheckpointError
from headprune.plans import HeadScores, PruningPlan
from headprune.report.documents import is_of_same_model, read_documents
from headprune.runs import COMPARISON_FILE, ROLES_FILE, SCORES, refuse_used_run, write_document


def compare_documents(
    paths: Sequence[Path], *, run_dir: str | None = None
) -> tuple[Comparison, Path]:
    """Compare what documents say of heads, and write ``compare.json``.

    Args:
        paths: Files (``roles.json``, ``scores.json``), or directories that hold some.
        run_dir: Where it is written; None stands for the next numbered directory.

    Raises:
        CheckpointError: There are no such documents, or ``run_dir`` can't be written.
    """
    if run_dir is not None:
        refuse_used_run(run_dir, file=COMPARISON_FILE)
    subjects = [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    comparison = compare(subjects)
    return comparison, write_document(comparison, run_dir, file=COMPARISON_FILE)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each: that of its directory, or of a file of another name; the whole path where that isn't enough."""
    short = [
        (path.parent if path.name in (SCORES, ROLES_FILE) else path)
        .resolve()
        .name.removesuffix(".json")
        for path in paths
    ]
    counts = Counter(short)
    names = [
        name if counts[name] == 1 else str(path) for name, path in zip(short, paths, strict=True)
    ]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)
    ]


def _read(path: Path, name: str) -> Subject:
    found = read_documents([path])
    roles, scores = found.of(Roles), found.of(HeadScores)
    documents: tuple[Roles | HeadScores, ...] = (*roles, *scores)
    if not documents or not all(is_of_same_model(documents[0], one) for one in documents):
        raise CheckpointError(
            f"{path} holds documents of several models"
            if documents
            else f"{path} holds no roles and no scores",
            where=str(path),
            hint="name roles.json, scores.json, the directory of a run, or what headprune prune saved",
        )
    removed = {head for plan in found.of(PruningPlan) for head in plan.remove}
    known = {head for one in documents for head in one.heads}
    most = max(roles, key=lambda one: len(one.names), default=None)
    return Subject(name, frozenset(known - removed), most, scores)
