"""Options that are no settings."""

from pathlib import Path
from typing import Literal

from headprune.config.fields import Section, option


class OwnOptions(Section):
    """Options that are no settings: how a command is called, and what of it is wanted."""

    config: Path | None = option(
        None, "YAML file of settings. (default: ./headprune.yaml)", short="-c"
    )
    file: Path | None = option(None, "All settings; options override it.", metavar="RECIPE.yaml")
    trust_metric_code: bool = option(
        False,
        "Load a metric that isn't built in although a file names it, not you: it is code that runs.",
    )
    stream: bool | None = option(
        None,
        "Cut from file to file, one tensor in memory at a time; needs --scores, reads no data, measures nothing. "
        "(default: where the weights are larger than the memory left)",
    )
    no_baseline: bool = option(
        False, "Leave aside the baseline that a file names.", off="with-baseline"
    )
    dry_run: bool = option(False, "Show the plan and what it saves; write no model.")
    resume: bool = option(False, "Go on from the last checkpoint.")
    update_baseline: bool = option(False, "Make this result the baseline.")
    format: Literal["text", "json", "markdown", "github", "junit"] | None = option(
        None, "Of stdout. (default: text)"
    )
    gguf: Path | None = option(None, "The file to write, for llama.cpp.", metavar="FILE")
    tokenizer: bool = option(True, "--no-tokenizer: weights alone, the engine is given token ids.")
    as_json: bool = option(False, "One JSON document on stdout.", off="")
    quiet: bool = option(False, "No messages on stderr.", off="", short="-q")
    verbose: bool = option(False, "Keep progress bars; full warnings.", off="", short="-v")
