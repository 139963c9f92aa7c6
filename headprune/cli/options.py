"""What every command has: its call, its settings, and how it talks.

A command is a function of a :class:`Call`, and a table of options by name. Nothing heavy is imported here: ``--help`` must be
there at once.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprune.cli.processes import refuse_several_processes
from headprune.cli.surroundings import check_surroundings, writing_stdout
from headprune.errors import HeadpruneError

if TYPE_CHECKING:
    from headprune.config import Recipe, Settings
    from headprune.report.terminal import ConsoleProgress

RUN_PANEL = "Run"

TALK: dict[str, Any] = {
    "json": Annotated[
        bool | None,
        typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=RUN_PANEL),
    ],
    "quiet": Annotated[
        bool | None,
        typer.Option("--quiet", "-q", help="No talk on stderr.", rich_help_panel=RUN_PANEL),
    ],
    "verbose": Annotated[
        bool | None,
        typer.Option(
            "--verbose", "-v", help="Keep progress bars; full warnings.", rich_help_panel=RUN_PANEL
        ),
    ],
}
"""The options that every command has."""

MEASURING = ("eval", "check")
"""Commands that read one data set."""


@dataclass(frozen=True)
class Call:
    """What a command gets.

    Args:
        recipe: The settings, from options, file and defaults, in one.
        settings: The same, in sections.
        own: Options of this command that are no settings, by name; None where they weren't given.
        talk: Where to talk.
        json: Whether one JSON document is wanted on stdout.
        said: The names of all that the command line itself says.
    """

    recipe: "Recipe"
    settings: "Settings"
    own: dict[str, Any]
    talk: "ConsoleProgress"
    json: bool
    said: frozenset[str] = frozenset()

    def show(self, value: Any) -> None:
        """Print a table, or text, to stdout."""
        from headprune.report.terminal import make_console, show

        with writing_stdout():
            show(make_console(), value)

    def write(self, text: str) -> None:
        """Write a document to stdout as it is."""
        with writing_stdout():
            typer.echo(text, nl=False)


class CommandError(Exception):
    """What ended a command. Click never sees it: it would answer Ctrl-C, the end of a file and a broken pipe itself."""

    def __init__(self, error: BaseException, notify: Callable[[HeadpruneError], str]) -> None:
        super().__init__(str(error))
        self.error = error
        self.notify = notify


def add_command(
    app: typer.Typer,
    name: str,
    function: Callable[[Call], None],
    *,
    options: dict[str, Any],
    tell_error: Callable[[Mapping[str, Any], HeadpruneError], str] = lambda _given, _error: "",
) -> None:
    """Register a command with its options, and how it talks; ``function`` gets them as a :class:`Call`.

    Every option defaults to None, "not said", so that a recipe's value can stand. ``tell_error`` returns what stdout says of an
    error beside what stderr does, by the options that were given.
    """

    @functools.wraps(function)
    def run(**given: Any) -> None:
        said = dict(given)
        try:
            check_surroundings()
            if name != "score":
                refuse_several_processes(name)
            from headprune.cli.idle import refuse_idle  # it knows what a call is

            call = _prepare(given, measures=name in MEASURING, gates=name == "check")
            refuse_idle(call, name)
            function(call)
        except typer.Exit:
            raise
        # A panic of a Rust library, or a library that leaves: 1 stays the gate's.
        except BaseException as error:
            raise CommandError(error, functools.partial(tell_error, said)) from error

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for option, annotation in {**options, **TALK}.items()
        ]
    )
    app.command(name)(run)


def _prepare(given: dict[str, Any], *, measures: bool, gates: bool) -> Call:
    from headprune.config import CHECK, SECTION_OF, Recipe, load_settings
    from headprune.report.terminal import ConsoleProgress
    from headprune.runtime.distributed import launched_rank

    # Of several processes one talks.
    talk = ConsoleProgress(
        quiet=bool(given.pop("quiet")) or launched_rank() > 0, verbose=bool(given.pop("verbose"))
    )
    json, file = bool(given.pop("json")), given.pop("config", None)
    said = {name: value for name, value in given.items() if value not in (None, [])}
    fields = {
        name: f"{CHECK}{name}"
        if f"{CHECK}{name}" in SECTION_OF and (gates or name not in SECTION_OF)
        else name
        for name in said
    }
    own = {name: value for name, value in said.items() if fields[name] not in SECTION_OF}
    settings, origin = load_settings(
        {fields[name]: value for name, value in said.items() if name not in own},
        file=own.pop("file", file),
        trust_metric_code=bool(own.pop("trust_metric_code", None)),
        measures=measures,
    )
    talk.notify(origin)
    _calm_libraries(verbose=talk.verbose)
    return Call(Recipe.from_settings(settings), settings, own, talk, json, frozenset(said))


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
