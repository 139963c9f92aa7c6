"""What this machine alone knows, in the user's state folder: the key of row hashes, and where models and data lay.

What is saved with a model is made to be published. It names rows by hashes that only who has the key can compare with a text, and
files by their last name; the key and the full paths stay here (``$XDG_STATE_HOME/headprune``, by default ``~/.local/state``).
Where that folder can't be used, nothing fails: then what this process noted is recognised by nobody later.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

_KEY_BYTES = 32
_HASH, _TAG = 16, 8
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def state_folder() -> Path | None:
    """Return the folder; None where the user has no home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():
        return Path(named) / "headprune"
    try:
        return Path.home() / ".local" / "state" / "headprune"
    except RuntimeError:
        return None


def noted_hash(digest: str) -> str:
    """Return the keyed hash of an input's digest: 16 digits by this machine's key, and 8 that tell whose key it was."""
    key = _key(state_folder())
    number = _keyed(key, f"row:{digest}")[:_HASH]
    return number + _keyed(key, f"tag:{number}")[:_TAG]


def is_noted_here(noted: str) -> bool:
    """Whether a hash was noted with this machine's key."""
    number, tag = noted[:_HASH], noted[_HASH:]
    return hmac.compare_digest(
        tag.encode(), _keyed(_key(state_folder()), f"tag:{number}")[:_TAG].encode()
    )


def count_noted_elsewhere(noted: Iterable[str]) -> int:
    """Return how many hashes nobody can compare with a row here: another machine's, or those of another version."""
    return sum(not is_noted_here(one) for one in noted)


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


@cache
def _key(folder: Path | None) -> bytes:
    """Return the key, made at its first use; one for this process where the folder can't be used."""
    fresh = secrets.token_bytes(_KEY_BYTES)
    if folder is None:
        return fresh
    path = folder / "row-key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            temporary = folder / f".row-key-{secrets.token_hex(8)}"
            temporary.touch(mode=0o600)
            temporary.write_bytes(fresh)
            with suppress(FileExistsError):  # another process was first
                path.hardlink_to(temporary)
            temporary.unlink()
        key = path.read_bytes()
    except OSError:
        return fresh
    return key if len(key) == _KEY_BYTES else fresh


def published_name(name: str) -> str:
    """Return the name of a model or file as it may be published: of an absolute path, the last part alone.

    >>> published_name("/home/me/train.csv"), published_name("data/train.csv"), published_name("org/model")
    ('train.csv', 'data/train.csv', 'org/model')
    """
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith("~") else name


def note_places(places: Mapping[str, str]) -> None:
    """Keep where models and data lie, by their fingerprints; names that aren't paths here are left out."""
    folder = state_folder()
    for fingerprint, name in places.items():
        if folder is None or not _FINGERPRINT.fullmatch(fingerprint):
            continue
        with suppress(OSError):
            if Path(name).exists():
                place = folder / "places" / fingerprint
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                temporary = place.with_name(f".{fingerprint}-{secrets.token_hex(8)}")
                temporary.write_text(str(Path(name).absolute()), encoding="utf-8")
                temporary.replace(place)


def place_of(fingerprint: object, *, name: str) -> str | None:
    """Return the path that was noted for a fingerprint, if something called ``name`` is still there."""
    folder = state_folder()
    if folder is None or not _FINGERPRINT.fullmatch(str(fingerprint)):
        return None
    try:
        path = Path((folder / "places" / str(fingerprint)).read_text(encoding="utf-8"))
        is_there = path.name == Path(name).name and path.exists()
    except (OSError, ValueError):
        return None
    return str(path) if is_there else None
