"""What ``inspect`` found, for the terminal."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from headprune.report.tables import Row, Sheet, key_value_table
from headprune.results import Survey

_ROUTES = {
    "stock": "plain from_pretrained",
    "remote-code": "trust_remote_code=True, or headprune.load",
    None: "no such plan",
}


def survey_table(survey: Survey) -> RenderableType:
    """Show attentions, layers of one kind in one row; what is refused; how it would load and what it would save."""
    parts: list[RenderableType] = [key_value_table(dict(_summary(survey))), Text(), _sites(survey)]
    if survey.refused:
        parts += [Text("\nleft whole", style="bold"), _refused(survey)]
    parts += [Text(), key_value_table(dict(_prospects(survey)))]
    return Group(*parts)


def _summary(survey: Survey) -> Iterator[tuple[str, Any]]:
    yield "model", f"{survey.architecture} ({survey.model_type}), {survey.parameters:,} parameters"
    yield "heads", f"{survey.num_heads} in {len(survey.sites)} attentions"
    before = survey.pruned_before
    if before:
        yield "pruned before", f"{len(before['removed'])} heads, by {before['by']}"
        if before["by"] != "headprune":
            yield "", "headprune convert MODEL --out DIR makes it load with transformers v5"


def _sites(survey: Survey) -> Sheet:
    titles = ("attention", "heads", "key/value heads", "width", "once cut", "may lose all")
    rows: list[Row] = []

    def alike(site: Any) -> tuple[Any, ...]:
        stack = site.name.rpartition("L")[0]
        path = "".join(c for c in site.path if not c.isdigit())
        return stack, path, len(site.heads), site.key_value_heads, site.head_dim, site.execution

    # By stack and kind first, so that self- and cross-attention, which take turns, make two rows and not two dozen.
    ordered = sorted(
        survey.sites, key=lambda site: _first_of_its_kind(survey, alike(site)[:2], alike)
    )
    for key, found in groupby(ordered, key=alike):
        members = list(found)
        names = members[0].name if len(members) == 1 else f"{members[0].name} … {members[-1].name}"
        cells = (
            names,
            str(key[2]),
            str(key[3]),
            str(key[4]),
            key[5],
            "yes" if members[0].min_heads == 0 else "no",
        )
        rows.append(Row(cells))
    return Sheet(rows, titles=titles)


def _first_of_its_kind(survey: Survey, key: tuple[Any, ...], alike: Any) -> int:
    return next(i for i, site in enumerate(survey.sites) if alike(site)[:2] == key)


def _refused(survey: Survey) -> Sheet:
    rows: list[Row] = []
    for reason, count in Counter(survey.refused.values()).items():
        first = next(path for path, why in survey.refused.items() if why == reason)
        rows.append(Row((first + (f" and {count - 1} more" if count > 1 else ""), reason)))
    return Sheet(rows, prose=1)


def _prospects(survey: Survey) -> Iterator[tuple[str, Any]]:
    for name, route in survey.loads_with.items():
        yield f"{name} plan loads with", _ROUTES[route]
    saves = survey.saves
    keep = f"--keep {saves['keep']:g}"
    if "impossible" in saves:
        yield keep, saves["impossible"]
        return
    share = saves["parameters"] / survey.parameters if survey.parameters else 0.0
    yield (
        f"{keep} removes",
        f"{saves['heads']} heads, {saves['parameters']:,} parameters ({share:.1%})",
    )
    yield (
        "",
        f"{saves['flops_per_token']:,} FLOPs per token at {saves['context']} tokens of context",
    )
    if saves["kv_cache_bytes_per_token"]:
        yield "", f"{saves['kv_cache_bytes_per_token']:,} bytes of key/value cache per token"
