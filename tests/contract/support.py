"""docs/support.md: what became of every model type, written by the contract itself (scripts/support)."""

from collections import Counter
from pathlib import Path

import torch
import transformers

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
_HEADER = """\
# What is supported

Written by `./scripts/support`; a test fails when it is out of date. transformers {transformers}, torch {torch}.

Every model type that transformers knows was built as a tiny random model and held to one contract (`tests/contract/law.py`):
its heads are found; for random uneven plans, with attentions that lose all their heads, the masked and the pruned model put
out the same (to {tolerance:g} of the outputs' scale; {worst:.0e} was the worst in single precision; what exceeds it has to
vanish in double), with eager and with sdpa attention; gates work row by row; every number of the saved model loads bit for
bit, with `headprune.load` and by the route named here; and where the type generates from plain tokens, it says with a cache
what the masked model says.

| | model types |
|---|---|
{counts}

*Once cut*: `native` attention runs with fewer heads, and all of weights, arithmetic and cache shrink. `zero_padded` attention
keeps its width: the projections shrink, their outputs are spread with zeros; weights and their arithmetic are saved, cache isn't.
`full_size_weights` attention passes its weights to a function: they are cut in memory and on disk, and full-size while it runs.
*Loads with*: what an uneven plan needs; `remote-code` means the one file beside the weights, or `headprune.load`.
Types are given by `model_type` in `config.json`; names after a colon are variants of a type by its settings.

## Supported

| model type | attentions of the tiny model | once cut | loads with | also checked | left whole |
|---|---|---|---|---|---|
{supported}

## Refused, with the reason

| model type | reason |
|---|---|
{refused}

## Without attention heads

{headless}

## Not built here

No tiny model of these could be built or run, so nothing is claimed. Most have no model of their own in transformers (a
tokenizer, a part of another config), need packages that aren't installed, or inputs that the contract doesn't make.
`headprune inspect` tries them all the same, and refuses what it can't prove.

{unbuilt}
"""


def page(verdicts, *, tolerance):
    """Return the page for all verdicts."""
    states = Counter(verdict.state for verdict in verdicts)
    order = sorted(verdicts, key=lambda verdict: verdict.name)
    unbuilt = [v for v in order if v.state == "not built"]
    return _HEADER.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        tolerance=tolerance,
        worst=max(verdict.worst for verdict in verdicts),
        counts="\n".join(
            f"| {text} | {states[state]} |"
            for state, text in {
                "exact": "every attention supported",
                "partly": "some attentions supported, others left whole",
                "refused": "refused by name and reason",
                "no attention": "without attention heads",
                "not built": "not built here",
            }.items()
        ),
        supported="\n".join(row(verdict) for verdict in order if verdict.found),
        refused="\n".join(row(verdict) for verdict in order if verdict.state == "refused"),
        headless=", ".join(f"`{v.name}`" for v in order if v.state == "no attention"),
        unbuilt=", ".join(f"`{v.name}`" for v in unbuilt),
    )


def row(verdict):
    """Return the line of the page that a verdict of a supported or refused type has."""
    if verdict.state == "refused":
        return f"| `{verdict.name}` | {_cell(verdict.reason)} |"
    kinds = ", ".join(f"{count} {kind}" for kind, count in verdict.kinds.items())
    return (
        f"| `{verdict.name}` | {kinds} | {', '.join(verdict.executions)} | {verdict.route} "
        f"| {', '.join(verdict.checked)} | {_cell(verdict.reason)} |"
    )


def _cell(text):
    return text.replace("|", "\\|").replace("\n", " ")
