"""Find in a real model, pruned before or not, the attentions that its tiny clone showed, and name them.

A name says where an attention lies: ``L3``, ``encoder.L3``, ``decoder.L2.cross``. It doesn't depend on the class that was loaded
(with a head for a task or without), nor on what was pruned.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.candidates import is_near
from headprune.anatomy.clone import pruning_record
from headprune.anatomy.exceptions import CROSS_ATTENTION
from headprune.anatomy.ownership import Pattern
from headprune.anatomy.sites import Anatomy, Run, Site, Slice
from headprune.anatomy.trace import in_features, looks_like_attention
from headprune.errors import UnsupportedError
from headprune.heads import HeadId, SiteId

UNSEEN = "a small copy of the model doesn't run it"
_NUMBER = re.compile(r"\d+")


def locate(
    model: PreTrainedModel, patterns: Sequence[Pattern], refused: Mapping[str, str]
) -> Anatomy:
    """Return the anatomy of ``model``.

    A site is found where path (but for numbers), class, integers and sizes agree with one of the clone's; whatever else
    looks like an attention is refused by name.
    """
    by_template: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        by_template.setdefault(template(pattern.path), []).append(pattern)
    reasons = {template(path): reason for path, reason in refused.items()}
    matched: dict[str, Pattern] = {}
    problems: dict[str, str] = {}
    for path, module in model.named_modules():
        where = template(path)
        if where in by_template:
            pattern_or_reason = _matching(model, path, module, by_template[where])
            if isinstance(pattern_or_reason, Pattern):
                matched[path] = pattern_or_reason
            else:
                problems[path] = pattern_or_reason
        elif where in reasons:
            problems[path] = reasons[where]
        elif looks_like_attention(module) and not is_near(where, by_template):
            problems[path] = UNSEEN
    names = name_sites(list(matched))
    record = pruning_record(model.config)
    removed = {HeadId.parse(name) for name in record.get("removed", ())}
    padding = [HeadId.parse(name) for name in record.get("padding", ())]
    _refuse_a_part(model, removed, names.values())
    sites: list[Site] = []
    for path, pattern in matched.items():
        site = _site(model, path, pattern, id=names[path], removed=removed, padding=padding)
        if isinstance(site, Site):
            sites.append(site)
        else:
            problems[path] = site
    return Anatomy(model.config.model_type, tuple(sites), problems)


def _refuse_a_part(
    model: PreTrainedModel, removed: Collection[HeadId], names: Collection[SiteId]
) -> None:
    """Refuse the encoder alone of a pruned encoder-decoder: its attentions have other names than those that were noted."""
    stacks = {site.stack for site in names}
    absent = min((head for head in removed if head.site.stack not in stacks), default=None)
    if absent is not None:
        raise UnsupportedError(
            f"a {type(model).__name__} has a part only of the model whose heads were pruned: {absent} was one",
            where="config.json (headprune)",
            hint="load it as the class that it was saved as, prune that, and take the part of the result",
        )


def _matching(
    model: nn.Module, path: str, module: nn.Module, patterns: Sequence[Pattern]
) -> Pattern | str:
    """Return the clone's attention that this module is like, the one of the same path first, or why there is none."""
    reason = UNSEEN
    for pattern in sorted(patterns, key=lambda pattern: pattern.path != path):
        if pattern.class_name not in ("", type(module).__name__):
            reason = f"it is a {type(module).__name__}, and a small copy has a {pattern.class_name} there"
        elif missing := _missing(model, path, pattern):
            reason = f"it has no parameter {missing}"
        elif _head_count(model, path, pattern) not in (None, pattern.num_heads):
            reason = f"it has another number of heads than {pattern.num_heads}"
        else:
            return pattern
    return reason


def _missing(model: nn.Module, path: str, pattern: Pattern) -> str | None:
    for item in pattern.slices:
        name = _at(item.parameter, pattern.path, path)
        owner, _, leaf = name.rpartition(".")
        try:
            model.get_submodule(owner).get_parameter(leaf)
        except AttributeError:
            return name
    return None


def _head_count(model: nn.Module, path: str, pattern: Pattern) -> int | None:
    """Return the number of heads that the real module names, if it was never pruned there."""
    for item in pattern.attributes:
        if item.kind == "heads" and not item.name.startswith("config."):
            module = model.get_submodule(_at(item.module, pattern.path, path))
            value = vars(module).get(item.name)
            return value if isinstance(value, int) and value >= pattern.num_heads else None
    return None


def _site(
    model: PreTrainedModel,
    path: str,
    pattern: Pattern,
    *,
    id: SiteId,
    removed: Collection[HeadId],
    padding: Collection[HeadId],
) -> Site | str:
    """Return the site at a path, or why its sizes are not what the clone's were."""

    def in_model(name: str) -> str:
        return _at(name, pattern.path, path)

    output = in_model(pattern.output)
    site = Site(
        id=id,
        path=path,
        output=output,
        gate=in_model(pattern.gate),
        num_heads=pattern.num_heads,
        num_key_value_heads=pattern.num_key_value_heads,
        head_dim=pattern.head_dim,
        heads=tuple(h for h in range(pattern.num_heads) if HeadId(id, h) not in removed),
        slices=pattern.slices,
        attributes=tuple(replace(a, module=in_model(a.module)) for a in pattern.attributes),
        execution=pattern.execution,
        when_empty=pattern.when_empty,
        padding=tuple(head.head for head in padding if head.site == id),
        called=pattern.called,
        rows=pattern.rows,
    )
    cut = site.cut_slices()
    slices: list[Slice] = []
    for item in pattern.slices:
        name = in_model(item.parameter)
        size = model.get_parameter(name).shape[item.dim]
        heads = site.slots if item in cut else range(site.num_heads)
        scaled = _scaled(item, name, size, heads)
        if scaled is None:
            return f"{name} has size {size}, which doesn't fit {len(site.slots)} heads"
        slices.append(scaled)
    width = in_features(model.get_submodule(output))
    head_dim = width // len(site.slots) if site.slots else pattern.head_dim
    return replace(site, slices=tuple(slices), head_dim=head_dim)


def _scaled(item: Slice, name: str, size: int, heads: Sequence[int]) -> Slice | None:
    """Return the clone's slice in the real model's size, or None where it doesn't come out even."""
    small = item.size(heads)
    if not small or not heads:
        return replace(item, parameter=name)
    ratio = Fraction(size, small)
    if any((run.length * ratio).denominator != 1 for run in item.runs):
        return None
    runs = tuple(Run(run.owners, int(run.length * ratio)) for run in item.runs)
    return replace(item, parameter=name, runs=runs)


def template(path: str) -> str:
    """Return a path with a star for every number: where attentions of one stack of layers lie."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def _at(name: str, path_in_clone: str, path: str) -> str:
    """Return a name of the clone as it is in the real model, where ``path_in_clone`` is ``path``."""
    parts = name.split(".")
    for index, (part, old, new) in enumerate(
        zip(parts, path_in_clone.split("."), path.split("."), strict=False)
    ):
        if part != old:
            break
        parts[index] = new
    return ".".join(parts)


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
        if CROSS_ATTENTION.search(path.rpartition(".")[2]) or CROSS_ATTENTION.search(_inner(path))
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
