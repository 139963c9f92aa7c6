"""The options that several commands have, and not all. Nothing heavy is imported here."""

from typing import Annotated

import typer

from headprune.method_names import METHOD_NAMES

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Hub id, directory, or demo:minilm.", show_default=False),
]
Keep = Annotated[
    float | None,
    typer.Option("--keep", help="Share of the heads that stay, such as 0.7.", show_default=False),
]
MinHeads = Annotated[
    int | None,
    typer.Option(help="Heads that stay in every layer. (default: 1)", show_default=False),
]
MultipleOf = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Layers keep a multiple of N heads (of key/value groups where these go as a whole), for tensor parallelism.",
        show_default=False,
    ),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(help="A head (L0.H1) or layer (L0) that stays; repeatable.", show_default=False),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHICH",
        help="Only these attentions lose heads: encoder, cross, decoder.cross, decoder.L2; repeatable.",
        show_default=False,
    ),
]
Uniform = Annotated[
    bool | None,
    typer.Option("--uniform", help="The same number of heads in every layer.", show_default=False),
]
Gqa = Annotated[
    str | None,
    typer.Option(
        metavar="group|even|pad",
        help="Where query heads share keys and values: remove whole groups, evenly from each, or one by one, padded. "
        "(default: group)",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"How heads are scored: {', '.join(METHOD_NAMES)}. (default: unique)",
        show_default=False,
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="loss|metric|distill",
        help="What importance is about: the task's loss, its metric (by ablation), or, without labels, how far outputs are from "
        "those of the model as it is. (default: loss)",
        show_default=False,
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="none|layer|standard",
        help="Divide scores by their layer's l2 norm, or make its scores have mean 0 and deviation 1. (default: none)",
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Heads go in so many steps, scored anew. (default: 2 where scores can be made again)",
        show_default=False,
    ),
]
NumSamples = Annotated[
    int | None,
    typer.Option(help="Calibration rows to score on. (default: 1024)", show_default=False),
]
