"""What lies beside the weights that are saved: ``config.json`` for readers old and new, and what comes along from the source.

Settings and pooling come along; never code, nor a name of somebody's code, nor a linked file.

Engines that bring transformers v4 read ``rope_theta`` and take a default where it isn't there: keys that v4 knows stand beside
those of v5 that replaced them. Which old names a config class knows, and where their values lie now, is asked of the class.
"""

import copy
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig

from headprune.anatomy.clone import quiet
from headprune.errors import CheckpointError, first_line, is_out_of_memory
from headprune.models.tokenizer import tokenizer_files, unchanged_source
from headprune.runtime.targets import everything_in
from headprune.untrusted.directories import (
    MODULES,
    SETTINGS,
    lies_within,
    module_entries,
    transformer_folder,
)
from headprune.untrusted.documents import read_json, read_json_list, read_text

# In the words of both libraries: "I/O error: File too large (os error 27)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(directory: Path, what: str) -> Iterator[None]:
    """Turn a write that failed inside a library into an error of ours; those of safetensors and tokenizers are no OSErrors.

    Raises:
        OSError: The system refused; whoever knows the target names it.
        CheckpointError: Anything else: settings that contradict each other, packed weights.
    """
    try:
        yield
    except Exception as error:
        refused = _OS_ERROR.search(str(error))
        is_known = type(error) is Exception or isinstance(error, SafetensorError)
        if refused is not None and not isinstance(error, OSError):
            raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error
        # It means that what the library was given can't be written.
        is_refusal = isinstance(error, (ValueError, RuntimeError)) and not is_out_of_memory(error)
        if not is_known and not is_refusal:
            raise
        if is_known:
            raise CheckpointError(
                f"{what} can't be written: {first_line(error)}",
                where=str(directory),
                hint="free some space, or choose a place on another disk; nothing was left half-written",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        about = next((line for line in lines if line.startswith("- ")), "".join(lines[:1]))
        raise CheckpointError(
            f"transformers can't save {what} as it is: {about.removeprefix('- ')[:300]}",
            where="generation_config" if "GenerationConfig" in str(error) else str(directory),
            hint="change what it names, and save again; nothing was left half-written",
        ) from error


_ROPE = "rope_parameters"
_OLD_NUMBERS = (
    *("rope_theta", "global_rope_theta", "local_rope_theta", "rope_local_base_freq"),
    *("swa_rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct"),
)
_OLD_SCALING = "rope_scaling"
# A value that no class has of itself, and that is lawful for each of these.
_NUMBER = 0.4375
_SCALING = {"rope_type": "linear", "factor": 3.4375}
# What stands in ``rope_parameters`` now and beside the scaling before.
_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor")


def write_config(config: PreTrainedConfig, directory: Path) -> None:
    """Write ``config.json`` with the names of transformers v4 beside those of v5."""
    config.save_pretrained(directory)
    path = directory / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    both = with_old_names(settings, config)
    if both != settings:
        text = json.dumps(both, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def with_old_names(settings: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of a config, and of those inside it, with the names that transformers v4 has for some of them."""
    named = dict(settings)
    for name in type(config).sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig) and isinstance(named.get(name), dict):
            named[name] = with_old_names(named[name], inner)
    if isinstance(named.get("dtype"), str):
        named.setdefault("torch_dtype", named["dtype"])
    rope = named.get(_ROPE)
    if not isinstance(rope, dict):
        return named
    old = {name: value for name, value in _old_rope(type(config), rope) if name not in named}
    # Whoever reads both must read what was there.
    return {**named, **old} if _reads_alike(type(config), named, old) else named


def _old_rope(kind: type[PreTrainedConfig], rope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _OLD_NUMBERS:
        path = _path_of(_NUMBER, _rope_with(kind, {name: _NUMBER}))
        if path is not None and (value := _at(rope, path)) is not None:
            yield name, value
    path = _path_of(_SCALING["factor"], _rope_with(kind, {_OLD_SCALING: dict(_SCALING)}))
    scaling = None if path is None else _at(rope, path[:-1])
    if isinstance(scaling, dict) and scaling.get("rope_type", "default") != "default":
        yield (
            _OLD_SCALING,
            {name: value for name, value in scaling.items() if name not in _BESIDE_SCALING},
        )


def _rope_with(kind: type[PreTrainedConfig], old_names: Mapping[str, Any]) -> Any:
    """Return the rope parameters that a config class makes of old names; None where it makes none, or refuses them."""
    # Config classes refuse with exceptions of their own, and some warn of old names.
    with quiet(), warnings.catch_warnings(action="ignore"), suppress(Exception):
        return getattr(kind(**old_names), _ROPE, None)
    return None


def _path_of(value: Any, tree: Any) -> tuple[str, ...] | None:
    """Return the keys that lead to a value."""
    if not isinstance(tree, Mapping):
        return () if tree == value else None
    for key, inner in tree.items():
        path = _path_of(value, inner)
        if path is not None:
            return (key, *path)
    return None


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _reads_alike(
    kind: type[PreTrainedConfig], settings: Mapping[str, Any], old: Mapping[str, Any]
) -> bool:
    both_forms = copy.deepcopy(
        [dict(settings), {**settings, **old}]
    )  # they are changed by who reads them
    with quiet(), warnings.catch_warnings(action="ignore"), suppress(Exception):
        plain, both = map(kind.from_dict, both_forms)
        return bool(getattr(plain, _ROPE, None) == getattr(both, _ROPE, None))
    return False


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
