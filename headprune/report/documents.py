"""The documents that a report is made from: what lies in the directories and files that a user names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from headprune.analysis.comparison import Comparison
from headprune.analysis.likeness import Similarity
from headprune.analysis.roles import Roles
from headprune.artefact import Artefact, EvalResult, as_artefact
from headprune.errors import CheckpointError
from headprune.gate import Baseline, Verdict
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results, Sweep
from headprune.runtime.local import published_name
from headprune.untrusted.documents import (
    MOST_BYTES,
    MOST_BYTES_OF_YAML,
    read_json,
    read_json_list,
    read_text,
    readable,
)

A = TypeVar("A", bound=Artefact)

_RECORD = "headprune.yaml"
_HINT = "name a run, a model that was pruned, or a file that --json wrote"
_FORMAT = re.compile(rb'"format"\s*:\s*1\b')


@dataclass(frozen=True)
class Kind:
    """One kind of document.

    Args:
        type: What it is read as.
        word: What it is called.
        keys: Keys that tell it.
    """

    type: type[Artefact]
    word: str
    keys: frozenset[str]


KINDS = (
    Kind(Verdict, "verdict", frozenset({"findings", "baseline", "result"})),
    Kind(Results, "results", frozenset({"proofs", "removed", "auto_class"})),
    Kind(Sweep, "sweep", frozenset({"curves", "metric"})),
    Kind(Roles, "roles", frozenset({"measures", "heads"})),
    Kind(PruningPlan, "plan", frozenset({"remove", "kept_per_site"})),
    Kind(HeadScores, "scores", frozenset({"method", "heads", "values"})),
    Kind(EvalResult, "evaluation", frozenset({"metric", "value", "seed"})),
    Kind(Baseline, "baseline", frozenset({"metric", "value"})),
    Kind(Similarity, "similarity", frozenset({"groups", "closest"})),
    Kind(Comparison, "comparison", frozenset({"subjects", "profiles"})),
)
"""All kinds; a document is of the first that it has the keys of."""


@dataclass(frozen=True)
class Document:
    """One document and where it came from.

    Args:
        value: What it says.
        kind: What kind of document it is, in a word.
        folder: The directory it lies in, as it was named.
        name: The name of its file.
        is_named: Whether the file itself was named, not its directory.
    """

    value: Artefact
    kind: str
    folder: str
    name: str
    is_named: bool = field(default=False, compare=False)

    @property
    def source(self) -> str:
        """Where it lies, in a word that may be published."""
        return f"{Path(self.folder).resolve().name}/{self.name}"


@dataclass(frozen=True)
class Documents:
    """All that was found, in the order in which it was named; what is there twice is there once.

    Args:
        items: The documents.
        records: The settings of runs, as YAML, by where they lie.
    """

    items: tuple[Document, ...]
    records: tuple[tuple[str, str], ...] = ()

    def of(self, kind: type[A]) -> tuple[A, ...]:
        """Return the documents of a kind."""
        return tuple(each.value for each in self.items if type(each.value) is kind)

    def beside(self, one: Artefact, kind: type[A]) -> A | None:
        """Return the document of a kind that belongs to another: of the same model, from the same directory if there is one.

        Of roles, a file that was named goes first, then what holds the most of them: a plan's directory has few.
        """
        folder = next((each.folder for each in self.items if each.value == one), "")
        fitting = [
            each
            for each in self.items
            if type(each.value) is kind and is_of_same_model(each.value, one)
        ]
        fitting.sort(key=lambda each: (_precedence(each), each.folder != folder))
        return fitting[0].value if fitting else None  # type: ignore[return-value]

    @property
    def model_name(self) -> str:
        """What the model is called that most of it is about: the source, where one was pruned."""
        for each in self.items:
            name = source_of(each.value).get("name")
            if name:
                return published_name(str(name))
        return "a model"


def _precedence(document: Document) -> tuple[bool, int]:
    """Return what roles are sorted by, the ones to show first; other documents are all alike."""
    value = document.value
    return (not document.is_named, -len(value.names)) if isinstance(value, Roles) else (False, 0)


def source_of(one: Any) -> dict[str, Any]:
    """Return what a document says of the model whose heads it is about: the one before pruning."""
    if isinstance(one, Results):
        return one.before.model if one.before else {}
    if isinstance(one, Verdict):
        return one.baseline.model
    model: dict[str, Any] = getattr(one, "model", {})
    earlier = model.get("source")
    return earlier if isinstance(earlier, dict) else model


def is_of_same_model(one: Artefact, other: Artefact) -> bool:
    """Whether two documents are about the heads of the same model, by its fingerprint; where one has none, by its heads."""
    prints = [source_of(each).get("fingerprint") for each in (one, other)]
    if all(prints):
        return prints[0] == prints[1]
    heads = [{str(head) for head in _heads(each)} for each in (one, other)]
    return bool(heads[0] & heads[1])


def _heads(one: Any) -> Iterable[Any]:
    if isinstance(one, PruningPlan):
        planned = [f"{site}.H{head}" for site, each in one.sites.items() for head in each.heads]
        return [*planned, *one.remove]
    if isinstance(one, Results):
        return one.removed
    heads = getattr(one, "heads", ())
    return heads if isinstance(heads, tuple) else ()


def read_documents(paths: Sequence[Path]) -> Documents:
    """Read all documents in the directories and files that are named; a directory's other files are left alone.

    Raises:
        CheckpointError: A path isn't there, holds no document, or a document was damaged.
    """
    items: list[Document] = []
    records: dict[str, str] = {}
    for path in paths:
        found = _in_folder(path) if path.is_dir() else _in_file(path)
        if not found:
            raise CheckpointError(
                f"{path} holds no document of headprune's",
                where=str(path),
                hint=_runs_in(path) or _HINT,
            )
        for one in found:
            same = [place for place, other in enumerate(items) if one.value == other.value]
            if not same:
                items.append(one)
            elif one.is_named:
                items[same[0]] = replace(items[same[0]], is_named=True)
        record = (path if path.is_dir() else path.parent) / _RECORD
        if record.is_file():
            name = f"{record.parent.resolve().name}/{_RECORD}"
            records[name] = read_text(record, most_bytes=MOST_BYTES_OF_YAML)
    return Documents(tuple(items), tuple(records.items()))


def _in_folder(folder: Path) -> list[Document]:
    """Return the documents in a directory, by their names; others' files of JSON are told by their size and what they lack."""
    found = []
    for path in sorted(folder.glob("*.json")):
        is_small = path.is_file() and path.stat().st_size <= MOST_BYTES
        if is_small and _FORMAT.search(path.read_bytes()):
            found += _in_file(path, is_named=False)
    return found


def _in_file(path: Path, *, is_named: bool = True) -> list[Document]:
    """Return the documents in a file: several, where ``score --json`` used several methods or ``prune --json`` checked."""
    with readable(path, error=CheckpointError, hint=_HINT), path.open("rb") as file:
        is_list = file.read(1) == b"["
    if is_list:
        contents = read_json_list(path, hint=_HINT)
    else:
        content = read_json(path, hint=_HINT)
        is_pair = content.keys() >= {"results", "verdict"}
        contents = [content["results"], content["verdict"]] if is_pair else [content]
    kinds = [_kind(one) for one in contents]
    if None in kinds and is_named:
        raise CheckpointError(
            f"{path.name} is no document that a report is made of",
            where=str(path),
            hint="it takes scores, plans, results, roles, sweeps, similarities, comparisons, and the JSON of eval and check",
        )
    return [
        Document(
            as_artefact(kind.type, content, path),
            kind.word,
            str(path.parent),
            path.name,
            is_named=is_named,
        )
        for kind, content in zip(kinds, contents, strict=True)
        if kind is not None
    ]


def _kind(content: Any) -> Kind | None:
    names = content.keys() if isinstance(content, dict) else set()
    return next((kind for kind in KINDS if names >= kind.keys), None)


def _runs_in(folder: Path) -> str:
    """Return a hint that names directories with documents in a directory that has none itself."""
    inner = (
        [str(path.parent) for path in sorted(folder.glob("*/*.json"))] if folder.is_dir() else []
    )
    names = list(dict.fromkeys(inner))[:3]
    return f"name what lies in it: {' '.join(names)}" if names else ""
