"""Heads on the terminal: where they are, a heatmap of their scores, the ends of the order, how far methods agree."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from headprune.artefact import Z_95
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores, PruningPlan
from headprune.report.terminal import Row, Sheet, key_value_table, line, prose
from headprune.results import Survey, SurveyedSite

if TYPE_CHECKING:
    import numpy as np

# Cividis-like steps from unimportant to important: readable for the colour-blind, in light and in dark terminals.
_COLOURS = ("#2c3e6b", "#45506f", "#646770", "#848075", "#a59a6c", "#c9b65c", "#f1d53f")
_BARS = "▁▂▃▄▅▆▇"
_CELL = 4
_LOADS = {
    "stock": "plain from_pretrained",
    "remote-code": "trust_remote_code=True, or headprune.load",
    None: "no such plan",
}


def heatmap(scores: HeadScores, plan: PruningPlan | None = None) -> RenderableType:
    """Show the scores as a grid, layers down and heads across, a warmer cell mattering more; removed heads are struck out.

    Colours follow the rank of a score, so that a few large ones don't hide the order of the rest.
    """
    ranked = scores.ranked()
    removed = set(plan.remove) if plan else set()
    cells: dict[SiteId, dict[int, Text]] = {head.site: {} for head in scores.heads}
    for rank, head in enumerate(ranked):
        step = min(len(_BARS) - 1, rank * len(_BARS) // max(1, len(ranked) - 1))
        bar = Text(f" {_BARS[step] * 2} ", style=_COLOURS[step])
        cells[head.site][head.head] = Text(" ×  ", style="dim") if head in removed else bar
    facts = f"\n{scores.method} scores from {min(scores.values):.3g} to {max(scores.values):.3g}"
    facts += f", n = {scores.n:,}" if scores.n else ""
    if scores.steps:
        facts += f", {scores.steps.count} steps towards {scores.steps.budget}"
    legend = Text.assemble(
        ("\nleast important ", "dim"),
        *((bar * 2, colour) for bar, colour in zip(_BARS, _COLOURS, strict=True)),
        (" most important", "dim"),
        (f"   ×: removed ({len(removed)} of {len(ranked)})" if plan else "", "dim"),
        (facts, "dim"),
    )
    return Group(Grid(cells), prose(legend))


@dataclass(frozen=True)
class Grid:
    """Cells by layer and head; where not all heads fit beside each other, the further ones follow below."""

    cells: Mapping[SiteId, Mapping[int, Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        names = max(len(str(site)) for site in self.cells)
        count = max(head for row in self.cells.values() for head in row) + 1
        fit = max(1, (options.max_width - names - 1) // _CELL)
        for start in range(0, count, fit):
            heads = range(start, min(count, start + fit))
            title = "".join(f"H{index}".center(_CELL) for index in heads)
            yield line((" " * (names + 1) + title, "dim"))
            for site, row in self.cells.items():
                text = line((f"{str(site).rjust(names)} ", "dim"))
                for index in heads:
                    text.append_text(row.get(index, Text(" " * _CELL)))
                yield text


def score_table(scores: HeadScores, *, count: int = 5) -> RenderableType:
    """Show the least and the most important heads with their standard errors."""
    errors = dict(zip(scores.heads, scores.standard_errors or (), strict=False))
    values, ranked = scores.by_head(), scores.ranked()

    def shown(head: HeadId) -> str:
        return f"{values[head]:.3g}" + (f" ± {errors[head]:.1g}" if head in errors else "")

    ends = list(zip(ranked, reversed(ranked), strict=True))[:count]
    rows = [Row((str(low), shown(low), str(high), shown(high))) for low, high in ends]
    return Sheet(rows, titles=("least important", "score", "most important", "score"))


def one_head_table(scores: HeadScores) -> RenderableType:
    """Show for each attention what keeping only its best head costs, and in how many no cost is seen."""
    better = scores.objective == "metric"
    rows = []
    enough = 0
    for one in scores.one_head:
        error = one.standard_error
        enough += error is not None and one.cost <= Z_95 * error
        shown = f"{one.cost:+.3g}" + ("" if error is None else f" ± {error:.1g}")
        rows.append(Row((str(one.head), shown, f"{one.cost_of_none:+.3g}")))
    what = f"the {scores.metric} is worse by" if better else "the loss rises by"
    titles = ("one head in its attention", what, "without any head there")
    counts = f"{enough} of {len(rows)} attentions with one head are no worse, as far as these rows can tell"
    chosen = (
        f"(heads chosen on one half of them, measured on the other, n = {scores.one_head[0].n:,})"
    )
    return Group(Sheet(rows, titles=titles), prose(f"\n{counts} {chosen}", style="dim"))


def agreement_table(all_scores: Sequence[HeadScores]) -> RenderableType:
    """Show how alike the orders of several methods are: Spearman's rank correlation of every two."""
    rows = [
        Row((scores.method, *("-" if value is None else f"{value:.2f}" for value in row)))
        for scores, row in zip(all_scores, rank_correlations(all_scores), strict=True)
    ]
    titles = ("same order (Spearman)", *(scores.method for scores in all_scores))
    return Sheet(rows, titles=titles, right=frozenset(range(1, len(titles))))


def rank_correlations(all_scores: Sequence[HeadScores]) -> list[list[float | None]]:
    """Return Spearman's rank correlation of every two scores of the same heads; None where all heads have the same score."""
    import numpy as np

    heads = all_scores[0].heads
    by_head = [scores.by_head() for scores in all_scores]
    ranks = [_mean_ranks(np.array([values[head] for head in heads])) for values in by_head]
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations = np.atleast_2d(np.corrcoef(ranks))
    return [[None if np.isnan(value) else float(value) for value in row] for row in correlations]


def _mean_ranks(values: "np.ndarray") -> "np.ndarray":
    """Return the place of each value in the order; equal ones share the mean of their places."""
    import numpy as np

    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def survey_table(survey: Survey) -> RenderableType:
    """Show attentions, layers of one kind in one row; what is refused; how it would load and what it would save."""
    parts: list[RenderableType] = [
        key_value_table(dict(_model_rows(survey))),
        Text(),
        _site_rows(survey.sites),
    ]
    if survey.refused:
        parts += [Text("\nleft whole", style="bold"), _refused_rows(survey.refused)]
    return Group(*parts, Text(), key_value_table(dict(_prospects(survey))))


def _model_rows(survey: Survey) -> Iterator[tuple[str, str]]:
    yield "model", f"{survey.architecture} ({survey.model_type}), {survey.parameters:,} parameters"
    yield "heads", f"{survey.num_heads} in {len(survey.sites)} attentions"
    before = survey.pruned_before
    if before:
        yield "pruned before", f"{len(before['removed'])} heads, by {before['by']}"
        if before["by"] != "headprune":
            yield "", "headprune convert MODEL --out DIR makes it load with transformers v5"


def _site_rows(sites: Sequence[SurveyedSite]) -> Sheet:
    """Return a row for each run of like attentions; self- and cross-attention, which take turns, make two rows."""

    def kind(site: SurveyedSite) -> tuple[str, str]:
        return site.name.rpartition("L")[0], "".join(c for c in site.path if not c.isdigit())

    def shape(site: SurveyedSite) -> tuple[Any, ...]:
        return kind(site), len(site.heads), site.key_value_heads, site.head_dim, site.execution

    first = {kind(site): index for index, site in reversed(list(enumerate(sites)))}
    rows: list[Row] = []
    for (_kind, *cells), group in groupby(
        sorted(sites, key=lambda site: first[kind(site)]), key=shape
    ):
        members = list(group)
        names = dict.fromkeys((members[0].name, members[-1].name))
        may_lose_all = "yes" if members[0].min_heads == 0 else "no"
        rows.append(Row((" … ".join(names), *map(str, cells), may_lose_all)))
    titles = ("attention", "heads", "key/value heads", "width", "once cut", "may lose all")
    return Sheet(rows, titles=titles)


def _refused_rows(refused: Mapping[str, str]) -> Sheet:
    first = {reason: path for path, reason in reversed(list(refused.items()))}
    counts = Counter(refused.values()).items()
    more = {reason: f" and {count - 1} more" if count > 1 else "" for reason, count in counts}
    return Sheet([Row((first[reason] + more[reason], reason)) for reason in more], prose=1)


def _prospects(survey: Survey) -> Iterator[tuple[str, str]]:
    for name, route in survey.loads_with.items():
        yield f"{name} plan loads with", _LOADS[route]
    saves = survey.saves
    keep = f"keep {saves['keep']:g}"
    if "impossible" in saves:
        yield keep, saves["impossible"]
        return
    share = saves["parameters"] / survey.parameters if survey.parameters else 0.0
    heads = f"{saves['heads']} heads, {saves['parameters']:,} parameters ({share:.1%})"
    yield f"{keep} removes", heads
    context = f"{saves['context']} tokens of context"
    yield "", f"{saves['flops_per_token']:,} FLOPs per token at {context}"
    if saves["kv_cache_bytes_per_token"]:
        yield "", f"{saves['kv_cache_bytes_per_token']:,} bytes of key/value cache per token"
