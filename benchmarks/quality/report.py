"""From measurements to docs/quality.md."""

from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import mean

from jinja2 import Template

from benchmarks.quality.measure import Measured
from benchmarks.quality.recipes import CONTENDERS, OURS, Contender

_TITLES = {
    "tiny": "A tiny random BERT (`--quick`): these numbers mean nothing",
    "minilm": "all-MiniLM-L6-v2, STS-B test, Spearman correlation; 1,024 labelled pairs of train",
    "minilm-distill": "The same without labels (`--objective distill`)",
    "smollm2": "SmolLM2-135M, WikiText-2 test, perplexity; query heads (`--gqa pad`)",
    "smollm2-groups": "The same, whole key/value groups (`--gqa group`)",
    "clinc150": "MiniLM with a linear head for CLINC150's 150 intents, accuracy; 1,024 labelled rows of train",
    "t5-titler": "T5 (8 + 8 layers; encoder, decoder and cross-attention heads), perplexity of the whole model's titles",
}


_PAGE = Path(__file__).with_name("quality.md.jinja")


def page(found: Sequence[Measured]) -> str:
    """Return the page."""
    found = sorted(found, key=lambda row: row.seed)
    contenders = [
        f"| {name} | {contender.source} | {_said(contender)} |"
        for name, contender in CONTENDERS.items()
        if any(row.contender == name for row in found)
    ]
    recipes = ["## Recipes", "", "| | what | settings |", "|---|---|---|", *contenders, ""]
    template = Template(_PAGE.read_text(encoding="utf-8"))
    text: str = template.render(
        tables=tables(found), prices=prices(found), recipes="\n".join(recipes)
    )
    return text


def _said(contender: Contender) -> str:
    if contender.choose or contender.merge or contender.train or contender.from_text:
        return "not a command"
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in contender.settings.items()
    ]
    return f"`{' '.join(words)}`" if words else "all defaults"


def tables(found: Sequence[Measured]) -> str:
    """Return a section for every subject, as Markdown."""
    subjects = [name for name in _TITLES if any(row.subject == name for row in found)]
    return "\n".join(
        _section(name, [row for row in found if row.subject == name]) for name in subjects
    )


_PRICED = {"smollm2": "query heads", "smollm2-groups": "groups"}
_ALONE = "michel, no norm"
_FORWARDS = {_ALONE: 3.0, OURS: 10.0}
"""What choosing takes: a forward and a backward, which is as much as two; and what `--cost` tells."""
_DECIDING = 3
_PER_STEP = 4 * 8 / 24
"""Of one step of healing: four forwards of eight windows, where 24 calibrate."""


def prices(found: Sequence[Measured]) -> str:
    """Return what each cut of a language model comes to, by what was spent on it in forwards of the calibration rows."""
    rows = [row for row in found if row.subject in _PRICED and row.seed == 0]
    cuts = sorted({(row.subject, -row.keep) for row in rows if row.contender == OURS})
    if not cuts:
        return ""
    names = [name for name in CONTENDERS if name in (OURS, _ALONE) or _steps(name)]
    lines = [
        "| | forwards | " + " | ".join(f"{_PRICED[one]}, {-keep:g}" for one, keep in cuts) + " |",
        "|---" * (len(cuts) + 2) + "|",
    ]
    for name in sorted(names, key=lambda name: (name != _ALONE, _steps(name))):
        here = {(row.subject, -row.keep): row for row in rows if row.contender == name}
        if here:
            values = [f"{here[cut].value:.2f}" if cut in here else "" for cut in cuts]
            steps = _steps(name)
            forwards = _FORWARDS.get(name, _FORWARDS[OURS] + _DECIDING + steps * _PER_STEP)
            shown = "scores alone (michel, no norm)" if name == _ALONE else name
            lines.append(f"| {shown} | {forwards:.0f} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _steps(name: str) -> int:
    contender = CONTENDERS[name]
    is_default = not (contender.from_text or contender.merge or contender.settings.get("lora"))
    return int(contender.settings.get("heal", 0)) if is_default else 0


def _section(name: str, rows: Sequence[Measured]) -> str:
    keeps = sorted({row.keep for row in rows}, reverse=True)
    names = [one for one in CONTENDERS if any(row.contender == one for row in rows)]
    first = rows[0]
    lines = [
        f"## {_TITLES[name]}",
        "",
        f"{first.metric} of the whole model: {first.base:.4f} (n = {first.n:,}, {first.heads[1]} heads).",
        "",
        "| | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |",
        "|---" * (len(keeps) + 1) + "|",
    ]
    for contender in names:
        cells = [_cell([r for r in rows if (r.contender, r.keep) == (contender, k)]) for k in keeps]
        shown = f"**{contender}**" if contender == OURS else contender
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    lines += [
        f"| *{OURS}'s loss in shares of the best other's* | "
        + " | ".join(_share(rows, keep) for keep in keeps)
        + " |",
        *_cache(rows, keeps),
        "",
    ]
    return "\n".join(lines)


def _cache(rows: Sequence[Measured], keeps: Sequence[float]) -> list[str]:
    """Return what is left of the key/value cache, as a row: of whole groups every cut of as many leaves the same."""
    cells = []
    for keep in keeps:
        here = [row for row in rows if row.keep == keep and row.kv_cache]
        ours = {row.kv_cache for row in here if row.contender == OURS}
        found = ours or {row.kv_cache for row in here}
        cells.append(
            " or ".join(_room(*cache) for cache in found if cache and (ours or len(found) == 1))
        )
    if not any(cells):
        return []
    return ["| *key/value cache per token of such cuts, in memory* | " + " | ".join(cells) + " |"]


def _room(left: int, whole: int) -> str:
    return f"{left:,} of {whole:,} B ({left / whole:.0%})"


def _cell(rows: Sequence[Measured]) -> str:
    """Return the mean over seeds, their range, and the paired interval of the first seed's difference to the whole model."""
    if not rows:
        return ""
    digits = 2 if rows[0].metric == "perplexity" else 4
    values = [row.value for row in rows]
    shown = f"{mean(values):,.{digits}f}"
    if len(rows) > 1:
        shown += f" ({min(values):,.{digits}f}-{max(values):,.{digits}f})"
    low, high = rows[0].difference_interval
    return (
        shown if digits == 2 and high > 1e4 else f"{shown} [{low:+.{digits}f}, {high:+.{digits}f}]"
    )


def _share(rows: Sequence[Measured], keep: float) -> str:
    """Return headprune's loss beside the best other recipe's; of perplexities, of their logarithms."""
    lost = {
        name: mean(_lost(row) for row in rows if (row.contender, row.keep) == (name, keep))
        for name in {row.contender for row in rows if row.keep == keep}
    }
    others = _others(lost)
    if OURS not in lost or not others:
        return ""
    best, least = min(others, key=lambda item: item[1])
    if least <= 0:
        return f"{best} loses nothing"
    return f"{lost[OURS] / least:.2f} ({best})"


def _others(lost: dict[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in lost.items() if not name.startswith(OURS)]


def _lost(row: Measured) -> float:
    if row.metric == "perplexity":
        return log(row.value) - log(row.base)
    return row.base - row.value
