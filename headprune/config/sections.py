"""One section for each stage. The options of the command line and the keys of a file are made from these fields."""

from typing import Any, Literal

from pydantic import model_validator

from headprune.analysis.catalogue import get_role
from headprune.config.fields import (
    MOST,
    AllowedDrop,
    BatchSize,
    Names,
    Section,
    Shares,
    Sizes,
    Target,
    option,
)
from headprune.errors import ConfigError
from headprune.scoring.catalogue import METHODS, MethodName
from headprune.tasks.catalogue import METRICS, TASKS

MAX_LENGTH = 128
"""The longest input in tokens, where neither the user nor the model says another."""

TARGETS = ("target_parameters", "target_flops", "target_kv_cache", "target_latency")
BUDGETS = ("keep", "heads", *TARGETS, "max_drop")
"""Fields that say how much is kept. A plan has one of them."""


class ModelSpec(Section):
    """Which model, and how it runs."""

    model: str | None = option(None, "Hub id, directory, or demo:minilm.", metavar="MODEL")
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    stock_class: bool = option(
        False,
        "Take transformers' own class for a model whose config names code of its own (auto_map), which is never run.",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, or spread: over all GPUs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type of the weights. (default: auto, the checkpoint's)"
    )
    allow_pickle: bool = option(False, "Read pickled weights (*.bin), tensors alone.")


class DataSpec(Section):
    """Which rows, and how they are judged."""

    task: str | None = option(
        None,
        "What the model is for. (default: told by its config)",
        metavar="|".join(TASKS),
    )
    data: str | None = option(
        None,
        "csv, tsv, json, jsonl, parquet, arrow, txt, or a data set.",
        metavar="FILE|HUB_ID[:CONFIG]",
    )
    split: str | None = option(None, "Split of a data set. (default: train)")
    eval_data: str | None = option(
        None,
        "Rows that results are measured on. (default: a part of --data that nothing else uses)",
        metavar="FILE|HUB_ID[:CONFIG]",
    )
    eval_split: str | None = option(None, "Split that results are measured on.")
    where: str | None = option(
        None, "Only rows that have this value in this column.", metavar="COLUMN=VALUE"
    )
    text: Names = option((), "Text column, or two.", metavar="A[,B]")
    label: str | None = option(None, "Label column.")
    max_length: int | None = option(
        None,
        f"Tokens per input, as far as the model takes them. (default: what an embedding model says itself, else {MAX_LENGTH})",
        ge=2,
        le=MOST,
    )
    metric: str | None = option(
        None, f"Built in: {', '.join(METRICS)}; others through evaluate.load."
    )
    higher_is_better: bool | None = option(
        None, "Direction of a metric that isn't built in.", off="lower-is-better"
    )
    limit: int | None = option(None, "Use at most this many rows, for a quick try.", ge=2)
    seed: int = option(0, "Seed of everything that is drawn.", ge=0, lt=2**32)
    batch_size: BatchSize = option(
        None,
        "Examples per batch; auto packs by tokens. Only the :batch scores and gates depend on it. (default: auto)",
        metavar="auto|N",
        ge=1,
    )

    @property
    def evaluation_source(self) -> tuple[str | None, str | None]:
        """Where the rows that report come from: data and split."""
        if self.eval_data:
            return self.eval_data, self.eval_split
        return self.data, self.eval_split or self.split


OF_THE_ROWS = (*(name for name in DataSpec.model_fields if name != "batch_size"), "num_samples")
"""Fields that define the rows of a run and how they are judged: all that is ever taken from a model's record."""


class ScoreSpec(Section):
    """How heads are scored."""

    method: MethodName | None = option(
        None,
        f"How heads are scored: {', '.join(METHODS)}. (default: unique; gradient with --reconstruct none)",
        metavar="NAME",
    )
    methods: Names = option((), "Several ways of scoring, side by side.", metavar="NAME[,NAME]")
    recipe: Literal["michel", "kwon", "flap", "minitron"] | None = option(
        None, "Score, choose and reconstruct as others do. (default: headprune's own way)"
    )
    objective: Literal["loss", "metric", "distill"] = option(
        "loss",
        "What importance is about: the task's loss, its metric (by ablation), or, without labels, how far outputs are from "
        "those of the model as it is.",
    )
    normalize: Literal["none", "layer", "standard"] = option(
        "none",
        "Divide scores by their layer's l2 norm, or make its scores have mean 0 and deviation 1.",
    )
    steps: int | None = option(
        None,
        "Heads are removed in so many steps, scored anew before each. (default: 2 where scores can be made again)",
        ge=1,
        le=10_000,
    )
    num_samples: int = option(1024, "Calibration rows to score on.", ge=1)
    compile: bool = option(
        False, "Compile the blocks for ablation (torch.compile): minutes first, then faster."
    )


class AnalyzeSpec(Section):
    """Which roles of heads are measured, and on how many made-up sequences."""

    role: Names = option(
        (), "Which roles. (default: all that model and data allow)", metavar="NAME[,NAME]"
    )
    num_sequences: int = option(200, "Random sequences, each repeated once.", ge=2, le=100_000)
    sequence_length: int = option(50, "Tokens per random sequence.", ge=4, le=10_000)
    num_needles: int = option(55, "Texts that hide a code word.", ge=2, le=10_000)
    needle_length: int = option(
        512,
        "Tokens of the longest such text; the shortest has about 32.",
        ge=64,
        le=1_000_000,
    )
    similarity: bool = option(False, "Compare heads with each other, too: similarity.json.")
    plan: str | None = option(
        None,
        "With --similarity: which kept head is nearest to each that this plan removes.",
        metavar="FILE",
    )


class Constraints(Section):
    """What a plan must keep to: how much is kept, and of what."""

    keep: float | None = option(None, "Share of the heads to keep, such as 0.7.", gt=0, le=1)
    heads: int | None = option(None, "How many heads to keep, at most.", ge=1)
    target_parameters: Target = option(
        None,
        "The most parameters: a share of the whole model (0.8, 80%) or a number (20M).",
        metavar="X",
    )
    target_flops: Target = option(
        None,
        "The most FLOPs per token, at 512 tokens of context: a share of the whole model (0.8, 80%) or a number (1.2G).",
        metavar="X",
    )
    target_kv_cache: Target = option(
        None,
        "The most bytes of key/value cache per token: a share of the whole model (0.8, 80%) or a number (48K).",
        metavar="X",
    )
    target_latency: Target = option(
        None,
        "The longest that a forward of 32 rows takes, measured on this machine: a share of the whole model's (0.8, 80%) or a "
        "time (12ms).",
        metavar="X",
    )
    max_drop: AllowedDrop = option(
        None,
        "Remove heads as long as the metric's 95 % interval is no worse than this, on rows used for nothing else: in its own "
        "units (0.01), or a share (1%).",
        metavar="X",
    )
    multiple_of: int = option(
        1,
        "Layers keep a multiple of N heads (of key/value groups where these are removed as a whole), for tensor parallelism.",
        metavar="N",
        ge=1,
    )
    min_heads: int = option(1, "Heads to keep in every layer.", ge=0)
    protect: Names = option((), "A head (L0.H1) or layer (L0) to keep; repeatable.")
    protect_role: Names = option(
        (), "Heads of these roles (headprune roles) are kept.", metavar="NAME[,NAME]"
    )
    uniform: bool = option(False, "The same number of heads in every layer.")
    gqa: Literal["group", "even", "pad"] = option(
        "group",
        "Where query heads share keys and values: remove whole groups, evenly from each, or one by one, padded.",
    )
    sites: Names = option(
        (),
        "Only these attentions lose heads: encoder, cross, decoder.cross, decoder.L2; repeatable.",
        metavar="WHICH",
    )
    rearrange: bool = option(
        False,
        "Of every layer remove the heads that lose the least together; with method fisher or fisher:batch.",
    )

    @property
    def budgets(self) -> dict[str, Any]:
        """The budget that is set, by its field; empty where none is."""
        values = {name: getattr(self, name) for name in BUDGETS}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _refuse_several_budgets(self) -> "Constraints":
        if len(self.budgets) > 1:
            raise ConfigError(
                f"{len(self.budgets)} budgets are set, and a plan has one",
                where=", ".join(f"`{name}={value}`" for name, value in self.budgets.items()),
                hint="leave all but one out; in a file, the limits of the check stand under `check:`",
            )
        return self

    @model_validator(mode="after")
    def _refuse_roles_that_no_head_has(self) -> "Constraints":
        for name in self.protect_role:
            get_role(name, where="`protect_role`", decided=True)
        return self


class GateSpec(Section):
    """What a result is held to. In a file it stands under ``check:``."""

    baseline: str | None = option(None, "The committed baseline.", metavar="FILE")
    max_drop: AllowedDrop = option(
        None,
        "How much worse the metric may be: in its own units (0.01), or a share (1%).",
        metavar="X",
    )
    min_recovery: float | None = option(None, "Least share of the baseline's metric.", gt=0)
    max_parameters: int | None = option(None, "Most parameters.", ge=0)
    max_latency_increase: float | None = option(
        None, "How much slower, as a share: 0.1 is 10 %.", ge=0
    )


class RunSpec(Section):
    """Where results come from and go to, and what is timed."""

    run_dir: str | None = option(None, "Where scores, or checkpoints, are kept.", metavar="DIR")
    scores: str | None = option(
        None,
        "Scores to use; latest: those of the latest run, if these settings would make them. (default: score now)",
        metavar="FILE|latest",
    )
    roles: str | None = option(
        None,
        "Roles of heads to use; latest: those of the latest run; none: no roles are looked at. "
        "(default: measured now, on 100 calibration rows and 50 made-up sequences at most)",
        metavar="FILE|latest|none",
    )
    out: str | None = option(None, "Where the model goes.", metavar="DIR")
    overwrite: bool = option(False, "Replace what is in --out.")
    points: Shares = option(
        (),
        "Shares of the heads to keep; the whole model is always there. (default: every tenth that can be cut)",
        metavar="0.9,0.8",
    )
    latency: bool = option(True, "Time the model, for a few seconds.")
    latency_length: Sizes = option(
        (), "Time it at so many tokens per row. (default: the data's median)", metavar="128,512"
    )
    latency_batch: Sizes = option(
        (), "Time it at so many rows. (default: 1, and 32 where that takes seconds)", metavar="1,32"
    )
