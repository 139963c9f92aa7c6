"""``headprune check``: the regression check for CI."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headprune.cli.checks import is_file_of_results
from headprune.cli.options import Call
from headprune.errors import HeadpruneError

if TYPE_CHECKING:
    from headprune.gate import Baseline
    from headprune.measured import EvalResult


def check(call: Call) -> None:
    """Compare a model with a committed baseline; exit 0 it holds, 1 it regressed, 2 it can't be told."""
    from headprune import gate
    from headprune.report.ci import FORMATS

    spec = call.settings.gate
    path = Path(spec.baseline or "")
    if call.own.update_baseline:
        gate.refuse_unusable_baseline(path)
        call.write(gate.write_baseline(path, _result(call)).to_json())
        call.progress.notify(f"written: {path}")
        return
    baseline = gate.read_baseline(path)
    verdict = gate.compare(_result(call, baseline), baseline, limits=spec)
    call.write(FORMATS[call.own.format or ("json" if call.own.as_json else "text")](verdict))
    if not verdict.passed:
        raise typer.Exit(1)


def error_on_stdout(options: Mapping[str, Any], error: HeadpruneError) -> str:
    """Return what stdout says of an exit 2: whoever reads a format for machines reads it there, too."""
    if options.get("as_json") or not options.get("format"):
        return ""
    from headprune.report.ci import ERROR_FORMATS

    text = ERROR_FORMATS.get(options["format"])
    return text(error) if text else ""


def _result(call: Call, baseline: "Baseline | None" = None) -> "EvalResult":
    """Return the result to judge: read from a file, or measured; what can't be judged is refused first."""
    from headprune.results import read_result

    if is_file_of_results(call):
        return read_result(Path(call.settings.model.model or ""))
    from headprune.footprint import size_names
    from headprune.gate import refuse_untimed
    from headprune.workflows.evaluate import evaluate

    run = call.settings.run
    if baseline is not None:
        sizes = size_names(lengths=run.latency_length, rows=run.latency_batch)
        refuse_untimed(baseline, call.settings.gate, names=sizes if run.latency else ())
    return evaluate(call.settings, progress=call.progress, baseline=baseline)
