"""``headprune prune``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import (
    MODEL,
    ROWS,
    TIMES,
    WORK,
    Compile,
    Gqa,
    Keep,
    Method,
    MinHeads,
    MultipleOf,
    Normalize,
    NumSamples,
    Objective,
    Overwrite,
    Protect,
    Sites,
    Steps,
    Uniform,
    switch,
)
from headprune.errors import ConfigError

if TYPE_CHECKING:
    from headprune.config import Recipe
    from headprune.plans import HeadScores, PruningPlan

OPTIONS: dict[str, Any] = {
    **MODEL,
    "keep": Keep,
    "heads": Annotated[int | None, typer.Option("--heads", help="How many heads stay, at most.")],
    **{
        f"target_{resource}": Annotated[
            str | None,
            typer.Option(
                metavar="X",
                help=f"The most {what}: a share of the whole model (0.8, 80%) or a number ({example}).",
                show_default=False,
            ),
        ]
        for resource, what, example in (
            ("parameters", "parameters", "20M"),
            ("flops", "FLOPs per token, at 512 tokens of context", "1.2G"),
            ("kv_cache", "bytes of key/value cache per token", "48K"),
            ("latency", "time of a forward of 32 rows, measured here", "12ms"),
        )
    },
    "max_drop": Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="As far as the metric's 95 % interval is no worse than this, on rows that do nothing else: in its own units "
            "(0.01), or a share (1%).",
        ),
    ],
    "multiple_of": MultipleOf,
    "scores": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|latest",
            help="Scores to use; latest: those of the latest run, if these settings would make them. (default: score now)",
        ),
    ],
    "out": Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the model goes (default: headprune-models/NAME-keep-KEEP, NAME-heads-N, ...).",
        ),
    ],
    "overwrite": Overwrite,
    "min_heads": MinHeads,
    "protect": Protect,
    "uniform": Uniform,
    "gqa": Gqa,
    "sites": Sites,
    "method": Method,
    "objective": Objective,
    "normalize": Normalize,
    "steps": Steps,
    "num_samples": NumSamples,
    "reconstruct": Annotated[
        str | None,
        typer.Option(
            metavar="none|best|scale|bias|refit",
            help="Make the heads that stay do what all did, in closed form: scale them, move the bias, refit the output "
            "projections; best tries bias and refit. Kept where rows that it didn't see say so. (default: best)",
        ),
    ],
    "allow_bias": switch(
        "allow-bias",
        "Where output projections have no bias and the family knows one (Llama, Qwen3), reconstruction may create it.",
    ),
    "rearrange": switch(
        "rearrange",
        "Of every layer go the heads that lose the least together; with --method fisher or fisher:batch.",
    ),
    "recipe": Annotated[
        str | None,
        typer.Option(
            metavar="michel|kwon|flap|minitron",
            help="Score, choose and reconstruct as others do. (default: headprune's own way)",
        ),
    ],
    "stream": switch(
        "stream",
        "Cut from file to file, one tensor in memory at a time; needs --scores, reads no data, measures nothing. "
        "(default: where the weights are larger than the memory left)",
    ),
    "dry_run": switch("dry-run", "Show the plan and what it saves; write no model."),
    "compile": Compile,
    **ROWS,
    **WORK,
    **TIMES,
}


def command(call: Call) -> None:
    """Remove the least important heads, prove it, and save the smaller model."""
    from headprune.report.tables import plan_table, prune_table
    from headprune.workflows.prune import plan as make_plan
    from headprune.workflows.prune import prune

    dry = bool(call.own.get("dry_run"))
    recipe = with_budget(call.recipe) if dry else with_output(call.recipe)
    show, stream = shower(call), call.own.get("stream")
    if dry:
        plan = make_plan(recipe.settings, progress=call.talk, show=show, stream=stream)
        call.write(plan.to_json()) if call.json else call.show(plan_table(plan))
        call.talk.notify("dry run: no model was written")
    else:
        results = prune(recipe.settings, progress=call.talk, show=show, stream=stream)
        table = prune_table(results, directory=str(recipe.out))
        call.write(results.to_json()) if call.json else call.show(table)


def with_budget(recipe: "Recipe") -> "Recipe":
    """Return the recipe, which must say how much to keep.

    Raises:
        ConfigError: It doesn't.
    """
    if not recipe.budgets:
        raise ConfigError(
            "it isn't said how many heads to keep",
            where="--keep",
            hint="headprune prune --keep 0.7, or another budget: --heads, --target-parameters, --max-drop 1%, ...",
        )
    return recipe


def with_output(recipe: "Recipe") -> "Recipe":
    """Return the recipe with the output directory settled."""
    recipe = with_budget(recipe)
    if recipe.out is not None:
        return recipe
    name = Path((recipe.model or "").replace(":", "-")).absolute().name
    budget, amount = next(iter(recipe.budgets.items()))
    said = f"{amount:g}" if isinstance(amount, float) else str(amount).replace("%", "pct")
    out = (
        Path("headprune-models")
        / f"{name}-{budget.removeprefix('target_').replace('_', '-')}-{said}"
    )
    return recipe.model_copy(update={"out": str(out)})


def shower(call: Call) -> "Callable[[HeadScores, PruningPlan], None]":
    """Return what shows scores and plan as a heatmap while the work goes on."""
    from headprune.report.heads import heatmap
    from headprune.report.terminal import show as show_on

    def show(scores: "HeadScores", plan: "PruningPlan") -> None:
        if not call.talk.quiet and not call.json:
            show_on(call.talk.console, heatmap(scores, plan))

    return show
