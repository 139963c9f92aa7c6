"""``headprune export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.options import Call
from headprune.cli.settings import MODEL, WORK, switch
from headprune.errors import ConfigError

if TYPE_CHECKING:
    from headprune.export.gguf import Exported

OPTIONS: dict[str, Any] = {
    **MODEL,
    "dtype": WORK["dtype"],
    "gguf": Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write, for llama.cpp.")
    ],
    "tokenizer": switch(
        "tokenizer", "--no-tokenizer: weights alone, the engine is given token ids."
    ),
    "overwrite": switch("overwrite", "Replace a GGUF file of this name."),
}


def command(call: Call) -> None:
    """Write a Llama-like model, pruned or not, as GGUF for llama.cpp, and prove it by reading it back."""
    from headprune.report.terminal import key_value_table
    from headprune.workflows.convert import export

    path = call.own.get("gguf")
    if path is None:
        raise ConfigError(
            "no file is named to write to",
            where="--gguf",
            hint="headprune export MODEL --gguf model.gguf",
        )
    made = export(
        call.settings,
        gguf=path,
        with_tokenizer=call.own.get("tokenizer") is not False,
        progress=call.talk,
    )
    call.write(made.to_json()) if call.json else call.show(key_value_table(_rows(made)))


def _rows(made: "Exported") -> dict[str, Any]:
    uneven = made.architecture == "deci"
    return {
        "file": f"{made.file} ({made.bytes / 1e6:.1f} MB, {made.dtype})",
        "architecture": f"{made.architecture} ({'head counts per layer' if uneven else 'every layer alike'})",
        "heads": " ".join(map(str, made.heads)),
        "key/value heads": " ".join(map(str, made.key_value_heads)),
        "tokenizer": made.tokenizer or "none: give token ids",
        **{f"✓ {proof.name}": proof.detail for proof in made.proofs},
    }
