"""What libraries write, in our words: their failures named, and ``config.json`` for readers old and new.

Engines that bring transformers v4 read ``rope_theta`` and take a default where it isn't there: keys that v4 knows stand beside
those of v5 that replaced them. Which old names a config class knows, and where their values lie now, is asked of the class.
"""

import copy
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig

from headprune.anatomy.clone import quiet
from headprune.errors import CheckpointError, first_line, is_out_of_memory

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
        if not is_known and not _is_refusal(error):
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


def _is_refusal(error: Exception) -> bool:
    """Whether an error of a library means that what it was given can't be written."""
    return isinstance(error, (ValueError, RuntimeError)) and not is_out_of_memory(error)


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
