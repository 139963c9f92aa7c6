"""``headprune export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headprune.cli.options import Call

if TYPE_CHECKING:
    from headprune.export.gguf import Exported


def export(call: Call) -> None:
    """Write a Llama-like model, pruned or not, as GGUF for llama.cpp, and prove it by reading it back."""
    from headprune.report.terminal import key_value_table
    from headprune.workflows.convert import export as export_model

    exported = export_model(
        call.settings,
        gguf=call.own.gguf or Path(),
        with_tokenizer=call.own.tokenizer,
        progress=call.progress,
    )
    call.write(exported.to_json()) if call.own.as_json else call.show(
        key_value_table(_rows(exported))
    )


def _rows(exported: "Exported") -> dict[str, Any]:
    shape = "head counts per layer" if exported.architecture == "deci" else "every layer alike"
    return {
        "file": f"{exported.file} ({exported.bytes / 1e6:.1f} MB, {exported.dtype})",
        "architecture": f"{exported.architecture} ({shape})",
        "heads": " ".join(map(str, exported.heads)),
        "key/value heads": " ".join(map(str, exported.key_value_heads)),
        "tokenizer": exported.tokenizer or "none: give token ids",
        **{f"✓ {proof.name}": proof.detail for proof in exported.proofs},
    }
