"""Scores on the terminal: a heatmap, the ends of the order, how far methods agree, what a race decided."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headprune.heads import HeadId, HeadScores, PruningPlan, Race, SiteId

# Cividis-like steps from unimportant to important: readable for the colour-blind, in light and in dark terminals.
_COLOURS = ("#2c3e6b", "#45506f", "#646770", "#848075", "#a59a6c", "#c9b65c", "#f1d53f")
_BARS = "▁▂▃▄▅▆▇"


def heatmap(scores: HeadScores, plan: PruningPlan | None = None) -> RenderableType:
    """Show the scores as a grid, layers down and heads across, a warmer cell mattering more; removed heads are struck out.

    Colours follow the rank of a score, so that a few large ones don't hide the order of the rest.
    """
    values = scores.by_head()
    rank = {head: place for place, head in enumerate(scores.ranked())}
    removed = set(plan.remove) if plan else set()
    sites: dict[SiteId, list[HeadId]] = {}
    for head in scores.heads:
        sites.setdefault(head.site, []).append(head)
    width = max(head.head for head in scores.heads) + 1
    grid = Table.grid(padding=(0, 0))
    grid.add_column(justify="right", style="dim")
    for _ in range(width):
        grid.add_column(justify="center", min_width=4)
    grid.add_row("", *(Text(f"H{index}", style="dim") for index in range(width)))
    for site, heads in sites.items():
        there = {head.head: head for head in heads}
        cells = [
            _cell(there[index], rank, removed) if index in there else Text("")
            for index in range(width)
        ]
        grid.add_row(f"{site} ", *cells)
    low, high = min(values.values()), max(values.values())
    legend = Text.assemble(
        ("\nleast important ", "dim"),
        *((bar * 2, colour) for bar, colour in zip(_BARS, _COLOURS, strict=True)),
        (" most important", "dim"),
        (f"   ×: removed ({len(removed)} of {len(values)})" if plan else "", "dim"),
        (f"\n{scores.method} scores from {low:.3g} to {high:.3g}", "dim"),
        (f", n = {scores.n:,}" if scores.n else "", "dim"),
        (
            f", {scores.steps.count} steps towards {scores.steps.budget}" if scores.steps else "",
            "dim",
        ),
    )
    return Group(grid, legend)


def _cell(head: HeadId, rank: dict[HeadId, int], removed: set[HeadId]) -> Text:
    share = rank[head] / max(1, len(rank) - 1)
    step = min(len(_COLOURS) - 1, int(share * len(_COLOURS)))
    bar = _BARS[step]
    if head in removed:
        return Text(" ×  ", style="dim")
    return Text(f" {bar}{bar} ", style=_COLOURS[step])


def score_table(scores: HeadScores, *, count: int = 5) -> RenderableType:
    """Show the least and the most important heads with their standard errors."""
    errors = dict(zip(scores.heads, scores.standard_errors or (), strict=False))
    values = scores.by_head()
    ranked = scores.ranked()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("least important", "score", "most important", "score"):
        table.add_column(title, style=None)

    def shown(head: HeadId) -> str:
        return f"{values[head]:.3g}" + (f" ± {errors[head]:.1g}" if head in errors else "")

    count = min(count, len(ranked))
    for low, high in zip(ranked[:count], ranked[::-1][:count], strict=True):
        table.add_row(str(low), shown(low), str(high), shown(high))
    return table


def agreement_table(found: Sequence[HeadScores]) -> RenderableType:
    """Show how alike the orders of several methods are: Spearman's rank correlation of every two."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = [rankdata(scores.values) for scores in found]
    with np.errstate(divide="ignore", invalid="ignore"):  # all heads may have the same score
        alike = np.atleast_2d(np.corrcoef(ranks))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("same order (Spearman)", style="dim")
    for scores in found:
        table.add_column(scores.method, justify="right")
    for scores, row in zip(found, alike, strict=True):
        table.add_row(scores.method, *("-" if np.isnan(value) else f"{value:.2f}" for value in row))
    return table


def race_text(race: Race, scores: HeadScores) -> RenderableType:
    """Say what a race decided, what it cost, and of which heads it is open."""
    rows = race.rows_per_head
    decided = len(scores.heads) - len(race.undecided)
    undecided = ", ".join(map(str, race.undecided)) or "none"
    return Text(
        f"{decided} of {len(scores.heads)} heads are decided for --keep {race.keep:g}, all of them rightly with a probability of "
        f"{1 - race.error_probability:.0%} or more\n"
        f"{min(rows)} to {max(rows)} rows a head, {sum(rows) / len(rows):.0f} on average; "
        f"{race.work:.0%} of the work of full ablation\n"
        f"undecided (they go by their means): {undecided}",
        style="dim",
    )
