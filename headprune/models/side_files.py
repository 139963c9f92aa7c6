"""What comes along from a model's source: settings and pooling; never code, nor a name of somebody's code, nor a linked file."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from headprune.anatomy.clone import quiet
from headprune.errors import CheckpointError
from headprune.models.tokenizer import tokenizer_files, unchanged_source
from headprune.models.writing import writing
from headprune.runtime.targets import everything_in
from headprune.untrusted.directories import (
    MODULES,
    SETTINGS,
    lies_within,
    module_entries,
    transformer_folder,
)
from headprune.untrusted.documents import read_json, read_json_list, read_text

# What makes a directory a sentence-embedding model.
_OF_THE_ROOT = ("config_sentence_transformers.json",)
_DATA = (".json", ".safetensors", ".txt", ".model")
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_OURS = "modeling_headprune."
# Where transformers looks for the names of code that lies in a repository.
_NAMES_OF_CODE = ("auto_map", "custom_pipelines")


def root_of(directory: Path) -> Path:
    """Return the directory that a user names: old sentence-transformers keep the transformer in a folder of it."""
    is_in_folder = _MODULE_FOLDER.fullmatch(directory.name) and not (directory / MODULES).exists()
    if is_in_folder and transformer_folder(directory.parent) == directory.name:
        return directory.parent
    return directory


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy settings and modules that lie in ``source`` itself, where ``directory`` has none of that name.

    A transformer that lies in a folder, as old versions of sentence-transformers have it, lies in ``directory`` itself
    afterwards, and ``modules.json`` says so.

    Raises:
        CheckpointError: A file is a link to somewhere else, or a pipe or device.
        ModelError: ``modules.json`` is damaged, or names code that isn't sentence-transformers' own.
    """
    modules = Path(MODULES)
    if _is_there(source / modules):
        _copy(source, modules, directory / modules)
    inner = transformer_folder(source)
    entries = module_entries(source) or ()
    for folder, patterns in ((inner, SETTINGS), ("", _OF_THE_ROOT)):
        names = sorted(path.name for path in (source / folder).iterdir())
        for name in (name for name in names if any(fnmatchcase(name, form) for form in patterns)):
            _copy(source, Path(folder, name), directory / name)
    for entry in entries:
        for path in (
            _in_folder(source, Path(entry.folder)) if entry.folder not in ("", inner) else ()
        ):
            _copy(source, path, directory / path)
    if inner:
        items = read_json_list(source / modules)
        _write_json(directory / modules, [{**items[0], "path": ""}, *items[1:]])


def write_tokenizer(tokenizer: Any, directory: Path, *, source: Path | None) -> None:
    """Write a tokenizer, or the source's own: as the very files that it was loaded from, unless it was changed since.

    Raises:
        CheckpointError: A file is a link to somewhere else, or a pipe or device; or it can't be written.
    """
    own = source and source / transformer_folder(source)
    home = own if tokenizer is None else unchanged_source(tokenizer)
    names = [] if home is None else list(tokenizer_files(home, tokenizer))
    if home is not None and names:
        for name in names:
            _copy(home, name, directory / name)
    elif tokenizer is not None:
        with quiet(), writing(directory, "the tokenizer"):
            tokenizer.save_pretrained(directory)


def _copy(source: Path, name: Path, target: Path) -> None:
    """Copy a file that lies in ``source`` itself, if there is none at ``target``."""
    file = source / name
    if not file.is_file() or not lies_within(source, file):
        raise CheckpointError(
            f"{name} is no file of the model's own directory, and isn't copied",
            where=str(file),
            hint="put the file itself there, or remove it",
        )
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, target)


def _in_folder(source: Path, folder: Path) -> Iterator[Path]:
    """Yield the data files of a module's folder; the folder itself, to be refused, where it is a link to somewhere else."""
    path_of_folder = source / folder
    if path_of_folder.is_dir() and lies_within(source, path_of_folder):
        names = sorted(path.name for path in path_of_folder.iterdir() if path.suffix in _DATA)
        yield from (folder / name for name in names)
    elif _is_there(path_of_folder):
        yield folder


def change_settings(path: Path, changes: Mapping[str, Any]) -> None:
    """Change settings in a JSON file, if there is one and its values differ; everything else stays as it is."""
    if not changes or not path.is_file():
        return
    settings = read_json(path)
    if isinstance(settings, dict) and any(settings.get(k) != v for k, v in changes.items()):
        _write_json(path, {**settings, **changes})


def _write_json(path: Path, settings: Any) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def drop_foreign_code(directory: Path) -> None:
    """Remove every name of code that isn't ours from the settings in ``directory``.

    A tokenizer, processor or config of the source may name classes in somebody's repository, which ``trust_remote_code=True``
    would fetch and run.
    """
    for path in everything_in(directory):
        if path.suffix != ".json" or "config" not in path.name or not path.is_file():
            continue
        raw = read_text(path)
        # Few files name code, and those that don't stay byte for byte what was written.
        if not any(name in raw for name in _NAMES_OF_CODE):
            continue
        settings = read_json(path)
        left = _without_code(settings, keep_ours=path == directory / "config.json")
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
