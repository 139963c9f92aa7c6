"""Find in a real model, pruned before or not, the attentions that its tiny clone showed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.anatomy.naming import name_sites
from headprune.anatomy.ownership import Pattern
from headprune.anatomy.sites import Anatomy, Attribute, Run, Site, Slice
from headprune.anatomy.trace import in_features, looks_like_attention
from headprune.errors import UnsupportedError
from headprune.heads import HeadId, SiteId

UNSEEN = "a small copy of the model doesn't run it"


def locate(
    model: PreTrainedModel, patterns: Sequence[Pattern], refused: Mapping[str, str]
) -> Anatomy:
    """Return the anatomy of ``model``.

    A site is found where path (but for numbers), class, integers and sizes agree with one of the clone's; whatever else
    looks like an attention is refused by name.
    """
    by_template: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        by_template.setdefault(_template(pattern.path), []).append(pattern)
    reasons = {_template(path): reason for path, reason in refused.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    matched: dict[str, Pattern] = {}
    problems: dict[str, str] = {}
    for path, module in model.named_modules():
        template = _template(path)
        if template in by_template:
            found = _matching(model, path, module, by_template[template])
            if isinstance(found, Pattern):
                matched[path] = found
            else:
                problems[path] = found
        elif template in reasons:
            problems[path] = reasons[template]
        elif looks_like_attention(module) and not _is_near(template, by_template):
            problems[path] = UNSEEN
    names = name_sites(list(matched))
    gone = [HeadId.parse(name) for name in pruning_record(model.config).get("removed", ())]
    padded = [HeadId.parse(name) for name in pruning_record(model.config).get("padding", ())]
    _refuse_a_part(model, gone, list(names.values()))
    sites: list[Site] = []
    for path, pattern in matched.items():
        site = _site(model, path, pattern, parameters, id=names[path], gone=gone, padded=padded)
        if isinstance(site, Site):
            sites.append(site)
        else:
            problems[path] = site
    return Anatomy(model.config.model_type, tuple(sites), problems)


def _refuse_a_part(model: PreTrainedModel, gone: Sequence[HeadId], names: Sequence[SiteId]) -> None:
    """Refuse the encoder alone of a pruned encoder-decoder: its attentions have other names than those that were noted."""
    stacks = {site.stack for site in names}
    strange = next((head for head in gone if head.site.stack not in stacks), None)
    if strange is not None:
        raise UnsupportedError(
            f"a {type(model).__name__} has a part only of the model whose heads were pruned: {strange} was one",
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
    parameters: Mapping[str, nn.Parameter],
    *,
    id: SiteId,
    gone: Sequence[HeadId],
    padded: Sequence[HeadId],
) -> Site | str:
    """Return the site, or why its sizes are not what the clone's were."""

    def there(name: str) -> str:
        return _at(name, pattern.path, path)

    every = range(pattern.num_heads)
    removed = {head.head for head in gone if head.site == id}
    padding = tuple(head.head for head in padded if head.site == id)
    heads = tuple(head for head in every if head not in removed)
    slots = tuple(sorted({*heads, *padding}))
    expanded = (pattern.execution if slots else pattern.when_empty) == "expanded"
    slices: list[Slice] = []
    for item in pattern.slices:
        name = there(item.parameter)
        size = parameters[name].shape[item.dim]
        # With expanded execution only linear layers are cut.
        scaled = _scaled(item, name, size, every if expanded and item.side is None else slots)
        if scaled is None:
            return f"{name} has size {size}, which doesn't fit {len(slots)} heads"
        slices.append(scaled)
    output = there(pattern.output)
    width = in_features(model.get_submodule(output))
    return Site(
        id=id,
        path=path,
        output=output,
        gate=there(pattern.gate),
        num_heads=pattern.num_heads,
        num_key_value_heads=pattern.num_key_value_heads,
        head_dim=width // len(slots) if slots else pattern.head_dim,
        heads=heads,
        slices=tuple(slices),
        attributes=tuple(
            Attribute(there(item.module), item.name, item.kind) for item in pattern.attributes
        ),
        execution=pattern.execution,
        when_empty=pattern.when_empty,
        padding=padding,
        called=pattern.called,
        rows=pattern.rows,
    )


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


def _template(path: str) -> str:
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


def _is_near(template: str, known: Mapping[str, object]) -> bool:
    """Whether a module holds a known attention, or lies in one (BertAttention holds BertSelfAttention)."""
    return any(
        other.startswith(f"{template}.") or template.startswith(f"{other}.") for other in known
    )
