"""Scores on the terminal: a heatmap, the ends of the order, how far methods agree, what a race decided."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores, PruningPlan, Race
from headprune.report.tables import Row, Sheet, line, prose

# Cividis-like steps from unimportant to important: readable for the colour-blind, in light and in dark terminals.
_COLOURS = ("#2c3e6b", "#45506f", "#646770", "#848075", "#a59a6c", "#c9b65c", "#f1d53f")
_BARS = "▁▂▃▄▅▆▇"
_WIDTH = 4


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
    cells = {
        site: {head.head: _cell(head, rank, removed) for head in heads}
        for site, heads in sites.items()
    }
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
    return Group(_Grid(cells), prose(legend))


@dataclass(frozen=True)
class _Grid:
    """Cells by layer and head; where not all heads fit beside each other, the further ones follow below."""

    cells: Mapping[SiteId, Mapping[int, Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        names = max(len(str(site)) for site in self.cells)
        count = max(head for row in self.cells.values() for head in row) + 1
        fit = max(1, (options.max_width - names - 1) // _WIDTH)
        for start in range(0, count, fit):
            heads = range(start, min(count, start + fit))
            head = "".join(f"H{index}".center(_WIDTH) for index in heads)
            yield line((" " * (names + 1) + head, "dim"))
            for site, row in self.cells.items():
                found = line((f"{str(site).rjust(names)} ", "dim"))
                for index in heads:
                    found.append_text(row.get(index, Text(" " * _WIDTH)))
                yield found


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

    def shown(head: HeadId) -> str:
        return f"{values[head]:.3g}" + (f" ± {errors[head]:.1g}" if head in errors else "")

    count = min(count, len(ranked))
    rows = [
        Row((str(low), shown(low), str(high), shown(high)))
        for low, high in zip(ranked[:count], ranked[::-1][:count], strict=True)
    ]
    return Sheet(rows, titles=("least important", "score", "most important", "score"))


def agreement_table(found: Sequence[HeadScores]) -> RenderableType:
    """Show how alike the orders of several methods are: Spearman's rank correlation of every two."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = [rankdata(scores.values) for scores in found]
    with np.errstate(divide="ignore", invalid="ignore"):  # all heads may have the same score
        alike = np.atleast_2d(np.corrcoef(ranks))
    rows = [
        Row((scores.method, *("-" if np.isnan(value) else f"{value:.2f}" for value in row)))
        for scores, row in zip(found, alike, strict=True)
    ]
    titles = ("same order (Spearman)", *(scores.method for scores in found))
    return Sheet(rows, titles=titles, right=frozenset(range(1, len(titles))))


def race_text(race: Race, scores: HeadScores) -> RenderableType:
    """Say what a race decided, what it cost, and of which heads it is open."""
    rows = race.rows_per_head
    decided = len(scores.heads) - len(race.undecided)
    undecided = ", ".join(map(str, race.undecided)) or "none"
    return prose(
        f"{decided} of {len(scores.heads)} heads are decided for --keep {race.keep:g}, all of them rightly with a probability of "
        f"{1 - race.error_probability:.0%} or more\n"
        f"{min(rows)} to {max(rows)} rows a head, {sum(rows) / len(rows):.0f} on average; "
        f"{race.work:.0%} of the work of full ablation\n"
        f"undecided (they go by their means): {undecided}",
        style="dim",
    )
