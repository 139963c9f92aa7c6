"""Draw docs/heatmap.svg from a pruned directory: python scripts/readme_picture.py demo-output/minilm-keep-0.7."""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from headprune.artefact import read_artefact
from headprune.plans import HeadScores, PruningPlan
from headprune.report.scores import heatmap

# rich's own template, without the fonts that it would fetch.
TEMPLATE = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; }}
{styles}
</style>
<defs>{lines}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#0c1021"/>
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    directory = Path(sys.argv[1])
    scores = read_artefact(HeadScores, directory / "scores.json")
    plan = read_artefact(PruningPlan, directory / "plan.json")
    console = Console(record=True, width=72, file=io.StringIO(), force_terminal=True)
    console.print(heatmap(scores, plan))
    target = Path(__file__).parent.parent / "docs" / "heatmap.svg"
    svg = console.export_svg(theme=MONOKAI, code_format=TEMPLATE, unique_id="headprune")
    target.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
