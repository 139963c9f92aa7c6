"""Names for attentions, from where they lie: ``L3``, ``encoder.L3``, ``decoder.L2.cross``.

A name doesn't depend on the class that was loaded (with a head for a task or without), nor on what was pruned.
"""

import re
from collections import Counter
from collections.abc import Sequence

from headprune.heads import SiteId

_CROSS = re.compile(r"cross|encoder_attn|enc_dec|encdec|encoder_decoder", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def name_sites(paths: Sequence[str]) -> dict[str, SiteId]:
    """Return a name for each path: stack, layer, kind.

    >>> [str(name) for name in name_sites(["encoder.layers.0.attn", "decoder.layers.0.encoder_attn"]).values()]
    ['encoder.L0', 'decoder.L0.cross']
    """
    stacks = _stack_names([_stack(path) for path in paths])
    named: dict[str, SiteId] = {}
    for stack, name in stacks.items():
        members = [path for path in paths if _stack(path) == stack]
        layers = _layers(members)
        kinds = _kinds(members, layers)
        named |= {path: SiteId(name, layers[path], kinds[path]) for path in members}
    return {path: named[path] for path in paths}


def _stack(path: str) -> tuple[str, ...]:
    """Return the part of a path before its first number: the list of blocks."""
    parts = path.split(".")
    first = next((index for index, part in enumerate(parts) if _NUMBER.fullmatch(part)), None)
    return tuple(parts[:first]) if first is not None else tuple(parts[:-1])


def _stack_names(stacks: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return the shortest telling name of each stack; the empty one where there is only one."""
    distinct = list(dict.fromkeys(stacks))
    if len(distinct) < 2:
        return dict.fromkeys(distinct, "")
    shared = 0
    while len({stack[: shared + 1] for stack in distinct}) == 1:
        shared += 1
    for words in range(1, max(map(len, distinct)) + 2):
        names = ["_".join(stack[shared : shared + words]) for stack in distinct]
        if len(set(names)) == len(names):
            break
    return {stack: _word(name) for stack, name in zip(distinct, names, strict=True)}


def _layers(paths: Sequence[str]) -> dict[str, int]:
    """Return each path's layer: its number, or, where lists lie in lists, the count of blocks before it."""
    numbers = {
        path: tuple(int(part) for part in path.split(".") if part.isdigit()) for path in paths
    }
    nested = _nested(paths)
    keys = {path: numbers[path][: nested or 1] for path in paths}
    if nested <= 1:
        return {path: key[0] if key else 0 for path, key in keys.items()}
    order = sorted(set(keys.values()))
    return {path: order.index(key) for path, key in keys.items()}


def _nested(paths: Sequence[str]) -> int:
    """Return how many of the numbers of a path tell blocks apart: 2 for stages of blocks, as in Swin."""
    templates = Counter(_NUMBER.sub("*", path) for path in paths)
    depths = [
        sum(part == "*" for part in template.split("."))
        for template, count in templates.items()
        if count > len({path.split(".")[len(_stack(path))] for path in paths if "." in path})
    ]
    return max(depths, default=1)


def _kinds(paths: Sequence[str], layers: dict[str, int]) -> dict[str, str]:
    """Return ``self`` or ``cross``; several of one kind in one block are told apart by the names of their modules."""
    kinds = {
        path: "cross"
        if _CROSS.search(path.rpartition(".")[2]) or _CROSS.search(_inner(path))
        else "self"
        for path in paths
    }
    crowd = Counter((layers[path], kinds[path]) for path in paths)
    result: dict[str, str] = {}
    for path in paths:
        if crowd[layers[path], kinds[path]] == 1:
            result[path] = kinds[path]
            continue
        rivals = [p for p in paths if (layers[p], kinds[p]) == (layers[path], kinds[path])]
        own = _inner(path).split(".")
        shared = [set(_inner(rival).split(".")) for rival in rivals]
        telling = [part for part in own if not all(part in parts for parts in shared)] or own
        result[path] = _word("_".join(telling)) or kinds[path]
    return result


def _inner(path: str) -> str:
    """Return the part of a path inside its block."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :] if numbers else parts[-1:])


def _word(name: str) -> str:
    """Return a name as the words of a site may be: lower case, letters first."""
    word = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    return word if not word or word[0].isalpha() else f"x{word}"
