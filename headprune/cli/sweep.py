"""``headprune sweep``."""

from typing import Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import (
    MODEL,
    ROWS,
    WORK,
    Compile,
    Gqa,
    MinHeads,
    MultipleOf,
    Normalize,
    NumSamples,
    Objective,
    Overwrite,
    Protect,
    Sites,
    Uniform,
)

OPTIONS: dict[str, Any] = {
    **MODEL,
    "methods": Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="How heads are scored, side by side. (default: gradient,magnitude,random)",
            show_default=False,
        ),
    ],
    "points": Annotated[
        list[str] | None,
        typer.Option(
            metavar="0.9,0.8",
            help="Shares of the heads that stay; the whole model is always there. (default: every tenth that can be cut)",
            show_default=False,
        ),
    ],
    "max_drop": Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Mark how far heads may go with the metric surely no worse than this: in its own units (0.01), or a share (1%).",
        ),
    ],
    "min_heads": MinHeads,
    "multiple_of": MultipleOf,
    "protect": Protect,
    "uniform": Uniform,
    "gqa": Gqa,
    "sites": Sites,
    "objective": Objective,
    "normalize": Normalize,
    "num_samples": NumSamples,
    "out": Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where curves and pictures go (default: headprune-runs/NNN-sweep).",
        ),
    ],
    "overwrite": Overwrite,
    "compile": Compile,
    **ROWS,
    **WORK,
}


def command(call: Call) -> None:
    """Measure the metric against the share of heads kept, for several scores side by side, by masking."""
    from headprune.report.tables import sweep_table
    from headprune.workflows.sweep import sweep

    found, out = sweep(call.settings, progress=call.talk)
    call.write(found.to_json()) if call.json else call.show(sweep_table(found))
    call.talk.notify(f"written: {out}/sweep.json, sweep.png, sweep.svg, and the scores")
