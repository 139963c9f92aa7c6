"""Where a model's files lie: a directory here, or one that is had from the hub."""

from pathlib import Path

from headprune.errors import ModelError
from headprune.untrusted import WHOLE, weight_names

# What a load, a card and a manifest need beside the weights. Code is fetched, not run. Modules of an embedding model lie in
# folders that are numbered, with weights of their own.
_WANTED_FILES = [
    *("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.yaml", "README.md"),
    "[0-9]*_*/*.safetensors",
]
NAME_IT = "name the directory that holds config.json and model.safetensors"
"""A hint."""


def directory_of(name: str, revision: str | None, *, weights: bool) -> tuple[Path, str | None]:
    """Return where a model's files lie, and the commit of a hub model.

    Raises:
        ModelError: There is no such directory or hub id.
    """
    try:
        is_here, is_directory = Path(name).exists(), Path(name).is_dir()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name[:100]!r} can't be looked for: {getattr(error, 'strerror', None) or error}",
            where="MODEL",
            hint="check the path and the permissions",
        ) from error
    if is_here and not is_directory:
        raise ModelError(
            f"{name} is a file, not the directory of a model",
            where=f"MODEL {name}",
            hint=NAME_IT,
        )
    if is_here:
        return Path(name), None
    directory = _download(name, revision, weights=weights)
    return directory, directory.name


def _download(name: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no directory {name}", where=f"MODEL {name}", hint="check the path"
        )
    try:
        wanted = _WANTED_FILES if weights else ["*.json"]
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if weights:  # once it is known which they are: others, in another format, lie beside many
            files = weight_names(directory, fetched=False) or (WHOLE,)
            snapshot_download(name, revision=directory.name, allow_patterns=list(files))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a directory nor a hub id",
            where=f"MODEL {name}",
            hint="check the name",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:  # hub and connection errors are OSErrors
        raise ModelError(
            f"the model {name} is not a directory here, and it could not be had from the hub",
            where=f"MODEL {name}" + (f" --revision {revision}" if revision else ""),
            hint="check the name and the network; HF_HUB_OFFLINE=1 allows only what is in the cache",
        ) from error
    return directory
