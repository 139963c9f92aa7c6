"""JSON and YAML from anybody: bounded in size and depth, UTF-8, an object at the top. The only readers of such files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from headprune.errors import CheckpointError, HeadpruneError, ModelError, first_line
from headprune.runtime.targets import kind_if_special

MOST_BYTES = 100_000_000
MOST_BYTES_OF_YAML = 200_000
MOST_DEPTH = 50
# Larger than any size, seed or placeholder (tokenizers say 1e30 for "no limit"); Python can't even print much larger ones.
_LARGEST = 10**40
_AGAIN = "fetch or make the file again"


def read_json(
    path: Path,
    *,
    error: type[HeadpruneError] = CheckpointError,
    hint: str = _AGAIN,
    most_bytes: int = MOST_BYTES,
) -> dict[str, Any]:
    """Read a JSON document that is an object, no larger than ``most_bytes``.

    Raises:
        HeadpruneError: The file can't be read, or is no such document.
    """
    raw = _read(path, error=error, hint=hint, most_bytes=most_bytes)
    with _undamaged(path, error, hint):
        return parse_json(raw)


def read_json_list(path: Path, *, hint: str = _AGAIN, most_bytes: int = MOST_BYTES) -> list[Any]:
    """Read a JSON document that is a list, no larger than ``most_bytes``.

    Raises:
        ModelError: The file can't be read, or is no such document.
    """
    raw = _read(path, error=ModelError, hint=hint, most_bytes=most_bytes)
    with _undamaged(path, ModelError, hint):
        document: list[Any] = _parsed(raw, list)
        return document


def read_text(
    path: Path,
    *,
    error: type[HeadpruneError] = CheckpointError,
    hint: str = _AGAIN,
    most_bytes: int = MOST_BYTES,
    called: str = "",
) -> str:
    """Read a text in UTF-8, no larger than ``most_bytes``; errors call it by its own name, or as ``called`` says.

    Raises:
        HeadpruneError: The file can't be read, is too large, or is not UTF-8.
    """
    raw = _read(path, error=error, hint=hint, most_bytes=most_bytes, called=called)
    with _undamaged(path, error, hint, what="can't be read", called=called):
        return raw.decode("utf-8")


@contextmanager
def _undamaged(
    path: Path,
    error: type[HeadpruneError],
    hint: str,
    *,
    what: str = "is damaged",
    called: str = "",
) -> Iterator[None]:
    """Turn what a parser says of a file into an error that names the file."""
    try:
        yield
    except ValueError as reason:
        raise error(
            f"{called or path.name} {what}: {first_line(reason)}", where=str(path), hint=hint
        ) from reason


@contextmanager
def readable(
    path: Path, *, error: type[HeadpruneError], hint: str, called: str = ""
) -> Iterator[None]:
    """Refuse a path that is a pipe or a device, and name the file that the block can't read.

    Raises:
        HeadpruneError: It is a pipe or a device, or the block raised an OSError.
    """
    name = called or path.name or str(path)
    try:
        if special := kind_if_special(path):
            raise error(f"{name} is {special}, not a file", where=str(path), hint=hint)
        yield
    except OSError as reason:
        raise error(
            f"{name} can't be read: {reason.strerror or reason}",
            where=str(path),
            hint="check the path and the permissions",
        ) from reason


def _read(
    path: Path, *, error: type[HeadpruneError], hint: str, most_bytes: int, called: str = ""
) -> bytes:
    with readable(path, error=error, hint=hint, called=called), path.open("rb") as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise error(
            f"{called or path.name} has more than {most_bytes / 1e6:g} MB, which no such file needs",
            where=str(path),
            hint=hint,
        )
    return raw


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return a JSON document, which must be an object.

    Raises:
        ValueError: It is not UTF-8, not JSON, no object, nested too deep, or holds a number or text that nothing can print.
    """
    document: dict[str, Any] = _parsed(raw, dict)
    return document


def _parsed(raw: bytes, expected: type) -> Any:
    try:
        document = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(document, expected):
        right = "a list" if expected is list else "an object"
        raise ValueError(f"it is {_kind(document)}, not {right}")  # noqa: TRY004 - of the text
    _refuse_unusable(document)
    return document


def parse_yaml(text: str) -> Any:
    """Return a YAML document without anchors, aliases and tags.

    Raises:
        ValueError: It is not YAML, has one of those, is too large or nested too deep.
    """
    if len(text) > MOST_BYTES_OF_YAML:
        raise ValueError(f"it has more than {MOST_BYTES_OF_YAML / 1e3:g} kB")
    try:
        loader = _PlainLoader(text)
        try:
            document = loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    _refuse_unusable(document)
    return document


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values: what an alias repeats can be a million times as large as its text, so there are none."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse what recipes don't need."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has an anchor or an alias (& or *), which recipes don't need")
        if getattr(event, "tag", None):
            raise ValueError(f"it has the tag {event.tag}, which recipes don't need")
        if self.depth > MOST_DEPTH:
            raise ValueError("it is nested too deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refuse_unusable(document: Any) -> None:
    """Refuse depths, numbers and texts that break the code that walks through or prints the document."""
    level = [document]
    for _ in range(MOST_DEPTH):
        if not level:
            return
        for value in level:
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise ValueError("it holds a number that is too large")
            if isinstance(value, str) and not _is_text(value):
                raise ValueError("it holds a text that is not Unicode")
        level = [child for value in level for child in _children(value)]
    if level:
        raise ValueError("it is nested too deep")


def _is_text(value: str) -> bool:
    if value.isascii():
        return "\0" not in value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "list": "a list", "str": "a text", "bool": "true or false"}
    names["dict"] = "an object"
    return names.get(type(value).__name__, "a number")
