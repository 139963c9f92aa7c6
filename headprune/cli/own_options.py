"""Options of commands that are no settings: how a command is called, and what of it is wanted."""

from pathlib import Path
from typing import Literal

from headprune.config.fields import Names, Section, option


class OwnOptions(Section):
    """Each is in the table ``ACTING`` of ``cli/options.py``, under the commands on which it acts."""

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
        None, "Format of stdout. (default: text)"
    )
    runs: tuple[Path, ...] = option(
        (), "Runs, pruned models, or JSON documents of headprune's.", metavar="RUN_OR_DIR..."
    )
    by: Names = option(
        (),
        "Analyze each value of a column, or each file, by itself; then compare.",
        metavar="COLUMN|NAME=FILE,...",
    )
    pictures: Path | None = option(
        None, "Write every chart there, too, as PNG and SVG.", metavar="DIR"
    )
    gguf: Path | None = option(None, "The file to write, for llama.cpp.", metavar="FILE")
    tokenizer: bool = option(True, "Write the tokenizer; else the engine takes token ids.")
    shown_text: str | None = option(
        None, "What is looked at; of an encoder-decoder what its encoder reads.", metavar="TEXT"
    )
    text_pair: str | None = option(
        None, "A second text in its row; what a decoder beside an encoder reads.", metavar="TEXT"
    )
    layers: Names = option((), "Only these layers, such as 0,3-5.", metavar="N[,N-N]")
    as_json: bool = option(False, "One JSON document on stdout.", off="")
    quiet: bool = option(False, "No messages on stderr.", off="", short="-q")
    verbose: bool = option(False, "Keep progress bars; full warnings.", off="", short="-v")
