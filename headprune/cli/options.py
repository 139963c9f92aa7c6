"""The options that every command shares, declared once.

A command is a function of a :class:`Call`, and a table of options by name. Nothing heavy is imported here: ``--help`` must be
there at once.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.processes import refuse_several_processes
from headprune.cli.surroundings import check_surroundings, writing_stdout

if TYPE_CHECKING:
    from headprune.config import Recipe
    from headprune.report.terminal import Talk

_DATA = "Data"
_RUN = "Run"


SHARED: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML recipe. (default: ./headprune.yaml)", show_default=False
        ),
    ],
    "revision": Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)
    ],
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
            help="Tokens per input. (default: 128)", rich_help_panel=_DATA, show_default=False
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
    "device": Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, mps, or spread: over all GPUs. (default: auto)",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ],
    "dtype": Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16|float16",
            help="(default: auto, the checkpoint's)",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ],
    "batch_size": Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Examples per batch; auto packs by tokens. Only the :batch scores and gates depend on it. (default: auto)",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ],
    "seed": Annotated[
        int | None, typer.Option(help="(default: 0)", rich_help_panel=_RUN, show_default=False)
    ],
    "json": Annotated[
        bool | None,
        typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=_RUN),
    ],
    "quiet": Annotated[
        bool | None, typer.Option("--quiet", "-q", help="No talk on stderr.", rich_help_panel=_RUN)
    ],
    "verbose": Annotated[
        bool | None,
        typer.Option(
            "--verbose", "-v", help="Keep progress bars; full warnings.", rich_help_panel=_RUN
        ),
    ],
}


@dataclass(frozen=True)
class Call:
    """What a command gets.

    Args:
        recipe: The settings, from options, file and defaults.
        own: Options of this command that are no settings, by name; None where they weren't given.
        talk: Where to talk.
        json: Whether one JSON document is wanted on stdout.
    """

    recipe: "Recipe"
    own: dict[str, Any]
    talk: "Talk"
    json: bool

    def show(self, value: Any) -> None:
        """Print a table, or text, to stdout."""
        from rich.console import Console

        with writing_stdout():
            # Names are shown as they are, as in Talk.
            Console(highlight=False, markup=False, emoji=False).print(value)

    def write(self, text: str) -> None:
        """Write a document to stdout as it is."""
        with writing_stdout():
            typer.echo(text, nl=False)


class CommandError(Exception):
    """What ended a command. Click never sees it: it would answer Ctrl-C, the end of a file and a broken pipe itself."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def add_command(
    app: typer.Typer, name: str, function: Callable[[Call], None], *, options: dict[str, Any]
) -> None:
    """Register a command with options of its own beside the shared ones; ``function`` gets them as a :class:`Call`.

    Every option defaults to None, "not said", so that a recipe's value can stand.
    """

    @functools.wraps(function)
    def run(**given: Any) -> None:
        try:
            check_surroundings()
            if name != "score":
                refuse_several_processes(name)
            function(_prepare(given))
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise CommandError(error) from error

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for option, annotation in {**options, **SHARED}.items()
        ]
    )
    app.command(name)(run)


def _prepare(given: dict[str, Any]) -> Call:
    from headprune.config import Recipe, load_recipe
    from headprune.distributed import launched_rank
    from headprune.report.terminal import Talk

    # Of several processes one talks.
    talk = Talk(
        quiet=bool(given.pop("quiet")) or launched_rank() > 0, verbose=bool(given.pop("verbose"))
    )
    json, file = bool(given.pop("json")), given.pop("config")
    said = {name: value for name, value in given.items() if value not in (None, [])}
    settings = {name: value for name, value in said.items() if name in Recipe.model_fields}
    own = {name: value for name, value in said.items() if name not in Recipe.model_fields}
    recipe, origin = load_recipe(
        settings,
        file=own.pop("file", file),
        trust_metric_code=bool(own.pop("trust_metric_code", None)),
    )
    talk.say(origin)
    _calm_libraries(verbose=talk.verbose)
    return Call(recipe, own, talk, json)


def _calm_libraries(*, verbose: bool) -> None:
    """Keep other libraries' bars and remarks off the user's screen."""
    if verbose:
        return
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
