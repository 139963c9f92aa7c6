"""What comes along from a model's source: settings and pooling; never code, nor a name of somebody's code, nor a linked file."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headprune.anatomy.clone import quiet
from headprune.checkpoint.tokenizer_files import tokenizer_files, unchanged_source
from headprune.checkpoint.writing import writing
from headprune.errors import CheckpointError
from headprune.untrusted import lies_within, read_json

# How a model generates, what reads its images or sounds, and what makes a directory a sentence-embedding model.
_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_FOLDERS = ("1_Pooling",)
_DATA = (".json", ".safetensors")
_OURS = "modeling_headprune."
# Where transformers looks for the names of code that lies in a repository.
_NAMES_OF_CODE = ("auto_map", "custom_pipelines")


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy settings that lie in ``source`` itself, where ``directory`` has none of that name.

    Raises:
        CheckpointError: One is a link to somewhere else, or a pipe or device.
    """
    _copy(_side_files(source), source, directory)


def write_tokenizer(tokenizer: Any, directory: Path, *, source: Path | None) -> None:
    """Write a tokenizer: as the very files that it was loaded from, unless it was changed since.

    Args:
        tokenizer: The tokenizer; None stands for the source's own.
        directory: Where to.
        source: The directory of the model that it belongs to.

    Raises:
        CheckpointError: A file is a link to somewhere else, or a pipe or device; or it can't be written.
    """
    home = source if tokenizer is None else unchanged_source(tokenizer)
    names = [] if home is None else list(tokenizer_files(home, tokenizer))
    if home is not None and names:
        _copy(names, home, directory)
    elif tokenizer is not None:
        with quiet(), writing(directory, "the tokenizer"):
            tokenizer.save_pretrained(directory)


def _copy(names: Iterable[Path], source: Path, directory: Path) -> None:
    for name in names:
        file, target = source / name, directory / name
        if target.exists():
            continue
        if not file.is_file() or not lies_within(source, file):
            raise CheckpointError(
                f"{name} is no file of the model's own directory, and isn't copied",
                where=str(file),
                hint="put the file itself there, or remove it",
            )
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def change_settings(path: Path, changes: Mapping[str, Any]) -> None:
    """Change settings in a JSON file, where there is one and it says otherwise; all else stays as it is."""
    if not changes or not path.is_file():
        return
    settings = read_json(path)
    if isinstance(settings, dict) and any(settings.get(k) != v for k, v in changes.items()):
        _write_json(path, {**settings, **changes})


def _write_json(path: Path, settings: Any) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _side_files(source: Path) -> Iterator[Path]:
    """Yield the paths of what is copied, below ``source``."""
    yield from (Path(name) for name in _FILES if _is_there(source / name))
    for folder in _FOLDERS:
        place = source / folder
        if place.is_dir() and lies_within(source, place):
            names = sorted(path.name for path in place.iterdir() if path.suffix in _DATA)
            yield from (Path(folder) / name for name in names)
        elif _is_there(place):
            yield Path(folder)


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def drop_foreign_code(directory: Path) -> None:
    """Take every name of code that isn't ours out of the settings in ``directory``: who trusts a model that we saved trusts us.

    A tokenizer, processor or config of the source may name classes in somebody's repository, which ``trust_remote_code=True``
    would fetch and run.
    """
    for path in sorted(directory.glob("*.json")):
        if "config" not in path.name and path.name != "modules.json":
            continue
        raw = path.read_text(encoding="utf-8")
        # Few files name code, and those that don't stay byte for byte what was written.
        if not any(name in raw for name in _NAMES_OF_CODE):
            continue
        settings = read_json(path)
        left = _without_code(settings, keep_ours=path.name == "config.json")
        if left != settings:
            _write_json(path, left)


def _without_code(value: Any, *, keep_ours: bool) -> Any:
    if isinstance(value, list):
        return [_without_code(item, keep_ours=keep_ours) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_code(item, keep_ours=keep_ours)
        for name, item in value.items()
        if name not in _NAMES_OF_CODE or (keep_ours and _is_ours(item))
    }


def _is_ours(auto_map: object) -> bool:
    return isinstance(auto_map, dict) and all(
        isinstance(name, str) and name.startswith(_OURS) for name in auto_map.values()
    )
