"""The options that several commands have: a command offers those that act in it. Nothing heavy is imported here."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headprune.cli.options import RUN_PANEL
from headprune.scoring.catalogue import METHODS

_DATA = "Data"


def switch(name: str, help: str, *, panel: str | None = None) -> Any:
    """Return an option that a file may say and the command line take back: ``--x/--no-x``."""
    words = f"--{name}/--no-{name}"
    return Annotated[
        bool | None, typer.Option(words, help=help, rich_help_panel=panel, show_default=False)
    ]


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
Uniform = switch("uniform", "The same number of heads in every layer.")
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
        help=f"How heads are scored: {', '.join(METHODS)}. (default: unique)",
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
Overwrite = switch("overwrite", "Replace what is in --out.")
Compile = switch(
    "compile",
    "Compile the blocks for ablation (torch.compile): minutes first, then faster.",
)
MODEL: dict[str, Any] = {
    "model": Model,
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML recipe. (default: ./headprune.yaml)", show_default=False
        ),
    ],
    "revision": Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)
    ],
    "stock_class": switch(
        "stock-class",
        "Take transformers' own class for a model whose config names code of its own (auto_map), which is never run.",
    ),
}
"""Which model."""

ROWS: dict[str, Any] = {
    "task": Annotated[
        str | None,
        typer.Option(
            metavar="similarity|classification|causal-lm",
            help="What the model is for. (default: told by its config)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "data": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB_ID[:CONFIG]",
            help="csv, tsv, json, jsonl, parquet, arrow, txt, or a data set.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "split": Annotated[
        str | None,
        typer.Option(
            help="Split of a data set. (default: train)", rich_help_panel=_DATA, show_default=False
        ),
    ],
    "text": Annotated[
        str | None,
        typer.Option(
            metavar="A[,B]", help="Text column, or two.", rich_help_panel=_DATA, show_default=False
        ),
    ],
    "label": Annotated[
        str | None,
        typer.Option(metavar="L", help="Label column.", rich_help_panel=_DATA, show_default=False),
    ],
    "max_length": Annotated[
        int | None,
        typer.Option(
            help="Tokens per input, as far as the model takes them. (default: what an embedding model says itself, else 128)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "metric": Annotated[
        str | None,
        typer.Option(
            help="Built in: spearman, pearson, accuracy, f1, matthews_correlation, perplexity; others through evaluate.load.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "trust_metric_code": Annotated[
        bool | None,
        typer.Option(
            "--trust-metric-code/--no-trust-metric-code",
            help="Load a metric that isn't built in although a file names it, not you: it is code that runs.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "higher_is_better": Annotated[
        bool | None,
        typer.Option(
            "--higher-is-better/--lower-is-better",
            help="Direction of a metric that isn't built in.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "eval_data": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB_ID[:CONFIG]",
            help="Rows that report. (default: a part of --data that chooses nothing)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "eval_split": Annotated[
        str | None,
        typer.Option(help="Split that reports.", rich_help_panel=_DATA, show_default=False),
    ],
    "limit": Annotated[
        int | None,
        typer.Option(
            help="Use at most this many rows, for a quick try.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    "seed": Annotated[
        int | None, typer.Option(help="(default: 0)", rich_help_panel=RUN_PANEL, show_default=False)
    ],
}
"""Which rows, and how they are judged: for commands that run the model on data."""

WORK: dict[str, Any] = {
    "device": Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, mps, or spread: over all GPUs. (default: auto)",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ],
    "dtype": Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16|float16",
            help="(default: auto, the checkpoint's)",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ],
    "batch_size": Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Examples per batch; auto packs by tokens. Only the :batch scores and gates depend on it. (default: auto)",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ],
}
"""Where and how the model runs."""

TIMES: dict[str, Any] = {
    "latency": switch(
        "latency", "Time the model. (default: yes, for a few seconds)", panel=RUN_PANEL
    ),
    "latency_length": Annotated[
        list[str] | None,
        typer.Option(
            metavar="128,512",
            help="Time it at so many tokens per row. (default: the data's median)",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ],
    "latency_batch": Annotated[
        list[str] | None,
        typer.Option(
            metavar="1,32",
            help="Time it at so many rows. (default: 1, and 32 where that takes seconds)",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ],
}
"""How the model is timed."""
