"""``headprune check``: the regression check for CI."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, ROWS, TIMES, WORK, switch
from headprune.errors import ConfigError, HeadpruneError, did_you_mean

if TYPE_CHECKING:
    from headprune.config import GateSpec
    from headprune.evaluation import EvalResult
    from headprune.gate import Baseline

OPTIONS: dict[str, Any] = {
    **MODEL,
    "model": Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|RESULTS.json",
            help="A model, which is evaluated, or results of `prune` or `eval --json`.",
        ),
    ],
    "baseline": Annotated[str | None, typer.Option(metavar="FILE", help="The committed baseline.")],
    "max_drop": Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="How much worse the metric may be: in its own units (0.01), or a share (1%).",
        ),
    ],
    "min_recovery": Annotated[
        float | None, typer.Option(help="Least share of the baseline's metric.")
    ],
    "max_parameters": Annotated[int | None, typer.Option(help="Most parameters.")],
    "max_latency_increase": Annotated[
        float | None, typer.Option(help="How much slower, as a share: 0.1 is 10 %.")
    ],
    "format": Annotated[
        str | None,
        typer.Option(metavar="text|json|markdown|github|junit", help="Of stdout (default: text)."),
    ],
    "update_baseline": switch("update-baseline", "Make this result the baseline."),
    **ROWS,
    **WORK,
    **TIMES,
}


def command(call: Call) -> None:
    """Compare a model with a committed baseline; exit 0 it holds, 1 it regressed, 2 it can't be told."""
    from headprune import gate
    from headprune.report.ci import FORMATS

    chosen = call.own.get("format") or ("json" if call.json else "text")
    if chosen not in FORMATS:
        raise ConfigError(
            f"there is no format {chosen!r}", where="--format", hint=did_you_mean(chosen, FORMATS)
        )
    if call.settings.gate.baseline is None:
        raise ConfigError(
            "no baseline is named",
            where="--baseline",
            hint="headprune check MODEL --baseline baseline.json (--update-baseline makes it)",
        )
    path = Path(call.settings.gate.baseline)
    if call.own.get("update_baseline"):
        gate.refuse_unusable_baseline(path)
        call.write(gate.write_baseline(path, _result(call)).to_json())
        call.talk.notify(f"written: {path}")
        return
    baseline = gate.read_baseline(path)
    limits = call.settings.gate
    verdict = gate.compare(_result(call, baseline, limits), baseline, limits=limits)
    call.write(FORMATS[chosen](verdict))
    if not verdict.passed:
        raise typer.Exit(1)


def tell_error(given: Mapping[str, Any], error: HeadpruneError) -> str:
    """Return what stdout says of an exit 2: whoever reads a format for machines reads it there, too."""
    from headprune.report.ci import ERROR_FORMATS

    notify = None if given.get("json") else ERROR_FORMATS.get(str(given.get("format")))
    return notify(error) if notify else ""


def _result(
    call: Call, baseline: "Baseline | None" = None, limits: "GateSpec | None" = None
) -> "EvalResult":
    """Return the result to judge: read from a file, or measured; what can't be judged is refused first."""
    from headprune.footprint import size_names
    from headprune.gate import refuse_untimed
    from headprune.results import read_result
    from headprune.workflows.evaluate import evaluate

    target = call.recipe.model or ""
    if target.endswith(".json"):
        return read_result(Path(target))
    recipe = call.recipe
    if baseline is not None and limits is not None:
        sizes = size_names(lengths=recipe.latency_length, rows=recipe.latency_batch)
        refuse_untimed(baseline, limits, names=sizes if recipe.latency else ())
    return evaluate(recipe.settings, progress=call.talk, baseline=baseline)
