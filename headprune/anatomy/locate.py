"""Find in a real model, pruned before or not, the attentions that its tiny clone showed."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.anatomy.ownership import Pattern
from headprune.anatomy.sites import Anatomy, Run, Site, Slice
from headprune.anatomy.trace import in_features, looks_like_attention
from headprune.heads import HeadId, SiteId


def locate(
    model: PreTrainedModel,
    patterns: Sequence[Pattern],
    refused: Mapping[str, str],
    *,
    min_heads: int = 1,
) -> Anatomy:
    """Return the anatomy of ``model``.

    A site is found where path (but for the layer number), class and sizes agree with the clone's; whatever else looks
    like an attention is refused by name.
    """
    by_template = {_template(pattern.path): pattern for pattern in patterns}
    reasons = {_template(path): reason for path, reason in refused.items()}
    removed = [HeadId.parse(name) for name in pruning_record(model.config).get("removed", ())]
    sites: list[Site] = []
    problems: dict[str, str] = {}
    for path, module in model.named_modules():
        template = _template(path)
        if template in by_template:
            pattern = by_template[template]
            gone = {head.head for head in removed if head.site.layer == _layer(path)}
            found = _site(model, path, module, pattern, gone=gone, min_heads=min_heads)
            if isinstance(found, Site):
                sites.append(found)
            else:
                problems[path] = found
        elif template in reasons:
            problems[path] = reasons[template]
        elif looks_like_attention(module) and not _is_near(template, by_template):
            problems[path] = "it doesn't call the attention interface of transformers"
    return Anatomy(model.config.model_type, tuple(sites), problems)


def _site(
    model: PreTrainedModel,
    path: str,
    module: nn.Module,
    pattern: Pattern,
    *,
    gone: set[int],
    min_heads: int,
) -> Site | str:
    """Return the site, or why this module is not what the clone's was."""
    if type(module).__name__ != pattern.class_name:
        return f"it is a {type(module).__name__}, and a small copy of the model has a {pattern.class_name} there"
    parameters = dict(model.named_parameters(remove_duplicate=False))
    heads = tuple(head for head in range(pattern.num_heads) if head not in gone)
    slices: list[Slice] = []
    for item in pattern.slices:
        name = _at(item.parameter, path)
        if name not in parameters:
            return f"it has no parameter {name}"
        scaled = _scaled(item, name, parameters[name].shape[item.dim], heads)
        if scaled is None:
            return f"{name} has size {parameters[name].shape[item.dim]}, which doesn't fit {len(heads)} heads"
        slices.append(scaled)
    output = _at(pattern.output, path)
    width = in_features(model.get_submodule(output))
    return Site(
        id=SiteId("", _layer(path)),
        path=path,
        output=output,
        num_heads=pattern.num_heads,
        num_key_value_heads=pattern.num_key_value_heads,
        head_dim=width // len(heads) if heads else pattern.head_dim,
        heads=heads,
        slices=tuple(slices),
        attributes=tuple(
            type(item)(_at(item.module, path), item.name, item.kind) for item in pattern.attributes
        ),
        min_heads=min_heads,
    )


def _scaled(item: Slice, name: str, size: int, heads: tuple[int, ...]) -> Slice | None:
    """Return the clone's slice in the real model's size, or None where it doesn't come out even."""
    small = item.size(heads)
    if not small:
        return Slice(name, item.dim, item.runs) if not size else None
    ratio = Fraction(size, small)
    runs = tuple(
        Run(run.owners, int(run.length * ratio))
        for run in item.runs
        if (run.length * ratio).denominator == 1
    )
    return Slice(name, item.dim, runs) if len(runs) == len(item.runs) else None


def _template(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def _layer(path: str) -> int:
    found = re.search(r"(?<=\.)\d+(?=\.|$)", path)
    return int(found[0]) if found else 0


def _at(path_in_clone: str, path: str) -> str:
    """Return a path of the clone with the layer number of the real module."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", str(_layer(path)), path_in_clone, count=1)


def _is_near(template: str, known: Mapping[str, Pattern]) -> bool:
    """Whether a module holds a known attention, or lies in one (BertAttention holds BertSelfAttention)."""
    return any(
        other.startswith(f"{template}.") or template.startswith(f"{other}.") for other in known
    )
