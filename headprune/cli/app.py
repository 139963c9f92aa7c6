"""The application: commands, version, and what becomes of errors."""

import functools
import inspect as inspection
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any

import typer

from headprune.cli.checks import is_file_of_results, refuse_idle, refuse_missing
from headprune.cli.commands import (
    analyze,
    check,
    convert,
    error_on_stdout,
    evaluate,
    export,
    heal,
    inspect,
    prune,
    score,
    sweep,
    view,
)
from headprune.cli.lists import methods, metrics, roles, tasks
from headprune.cli.options import (
    ACTING,
    TALK,
    Call,
    annotation_of,
    as_options,
    prepare,
    takes_recipe,
)
from headprune.cli.report import compare, report
from headprune.cli.signals import discard, received
from headprune.cli.surroundings import (
    ReaderGoneError,
    check_surroundings,
    refuse_several_processes,
    stdout_error,
    system_error,
)
from headprune.errors import ConfigError, HeadpruneError, ModelError, is_out_of_memory, with_type

_MODELS = "transformers.models."

app = typer.Typer(
    name="headprune",
    help="Score every attention head of a transformer, prune the ones that don't matter, prove it, guard it in CI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_MORE_WORDS = re.compile(r"Got unexpected extra arguments?(\(s\))?")
_COMMANDS: dict[str, Callable[[Call], None]] = {
    "score": score,
    "analyze": analyze,
    "view": view,
    "prune": prune,
    "sweep": sweep,
    "eval": evaluate,
    "heal": heal,
    "check": check,
    "inspect": inspect,
    "convert": convert,
    "run": prune,
    "export": export,
    "compare": compare,
    "report": report,
    "methods": methods,
    "tasks": tasks,
    "metrics": metrics,
    "roles": roles,
}


class CommandError(Exception):
    """What ended a command. Click never sees it: it would answer Ctrl-C, the end of a file and a broken pipe itself."""

    def __init__(self, error: BaseException, options: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.options = options


def _add_command(name: str, function: Callable[[Call], None]) -> None:
    """Register a command with the options that act on it. Every option defaults to None, "not given", so that a file's stands."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        try:
            check_surroundings()
            if name not in ("score", "analyze", "heal"):
                refuse_several_processes(name, takes_scores="scores" in ACTING[name])
            call = prepare(name, options)
            refuse_missing(call, name)
            refuse_idle(call, name)
            if takes_recipe(name) and not (call.progress.verbose or is_file_of_results(call)):
                _calm_libraries()
            function(call)
        except typer.Exit:
            raise
        # A panic of a Rust library, or a library that leaves: 1 stays the gate's.
        except BaseException as error:
            raise CommandError(error, options if name == "check" else {}) from error

    run.__signature__ = inspection.Signature(  # type: ignore[attr-defined]
        [
            inspection.Parameter(
                option,
                inspection.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=annotation_of(name, option),
            )
            for option in (*ACTING[name], *TALK)
        ]
    )
    app.command(name)(run)


for _name, _function in _COMMANDS.items():
    _add_command(_name, _function)


def _calm_libraries() -> None:
    """Keep other libraries' bars and remarks off the user's screen."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def _show_version(wanted: bool | None) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headprune {version('headprune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    del version  # its callback has done the work


def _out_of_memory(error: BaseException) -> HeadpruneError:
    return HeadpruneError(
        f"memory ran out: {' '.join(str(error).split())[:200] or 'on the CPU'}",
        where="headprune " + " ".join(sys.argv[1:2]),
        hint="use a smaller --batch-size or --max-length, --dtype bfloat16, or another --device",
    )


def _no_such_option(command: str, option: str, context: Any) -> ConfigError:
    known = [flag for each in context.command.params for flag in (*each.opts, *each.secondary_opts)]
    name = option.lstrip("-").removeprefix("no-").replace("-", "_")
    others = [other for other, names in ACTING.items() if name in names]
    hints = [f"did you mean {word}?" for word in get_close_matches(option, known, n=1)]
    hints += [f"it acts on {', '.join(others)};"] if others else []
    return ConfigError(
        f"{command} has no option {option}",
        where=option,
        hint=" ".join([*hints, f"{command} --help tells what there is"]),
    )


def _usage_error(error: Any) -> ConfigError:
    """Return in three parts what typer says of a command line that it can't read."""
    command = " ".join(["headprune", *(word for word in sys.argv[1:2] if word in _COMMANDS)])
    if hasattr(error, "possibilities"):
        return _no_such_option(command, error.option_name, error.ctx)
    what, where = _MORE_WORDS.sub("too many words", error.format_message()), command
    parameter = getattr(error, "param", None)
    if parameter is not None and error.message:
        where, given = parameter.opts[0], ""
        for word, after in pairwise([*sys.argv, ""]):
            name, is_joined, value = word.partition("=")
            if name in parameter.opts:
                given = value if is_joined else after
        what = f"{where} can't be {given!r}: {error.message[0].lower()}{error.message[1:]}"
    return ConfigError(
        f"{what[0].lower()}{what[1:]}".rstrip("."),
        where=where,
        hint=f"{command} --help tells what there is",
    )


def _misused(error: Any) -> int:
    """Say what is wrong with a command line that typer can't read, and return the exit code.

    Its errors are those of click, or of the copy of it that later versions bring, which has no public name.
    """
    if not hasattr(error, "format_message"):
        raise error
    if len(sys.argv) > 1:
        return _failed(_usage_error(error))
    typer.echo(error.format_message(), err=True)  # nothing was said: it is the help
    return 2


def run_app() -> int:
    """Run the command line and return its exit code: 0 fine, 1 a gate or proof said no, 2 anything else.

    Raises:
        KeyboardInterrupt: It was stopped; its notes say what can be resumed.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a heatmap's bars gets question marks, not a crash after the work.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except SystemExit as left:
        # A broken pipe under --help is answered with 1, which is the gate's.
        broken = isinstance(left.__context__, OSError)
        return _failed(stdout_error(left.__context__)) if broken else int(left.code or 0)
    except typer.Abort:  # Ctrl-C while options are read; later versions of typer answer it with 130
        raise KeyboardInterrupt from None
    except CommandError as ended:
        error = ended.error
        if isinstance(error, KeyboardInterrupt):
            raise error from None
        return _failed(error, options=ended.options)
    except OSError as error:  # of a command they come as CommandError: this is --help, or --version
        discard(sys.stdout)
        return _failed(stdout_error(error))
    except Exception as error:  # noqa: BLE001 - raised again, unless it is typer's
        return _misused(error)
    if code == 130:
        raise KeyboardInterrupt
    return int(code or 0)


def _module_that_failed(error: BaseException) -> str | None:
    """Return the module of a model in transformers in which an exception arose; None where it arose in ours, or elsewhere."""
    frames = traceback.walk_tb(error.__traceback__)
    names = [str(frame.f_globals.get("__name__")) for frame, _line in frames]
    ours = (name for name in reversed(names) if name.startswith(("headprune.", _MODELS)))
    last = next(ours, "")
    return last.rpartition(".")[2] if last.startswith(_MODELS) else None


def _failed(error: BaseException, *, options: Mapping[str, Any] | None = None) -> int:
    """Say what is wrong, in three parts, and return the exit code; by the options of ``check`` on stdout, too."""
    if received:
        raise KeyboardInterrupt from error
    if os.environ.get("HEADPRUNE_DEBUG") == "1":
        raise error
    if isinstance(error, ReaderGoneError):
        return error.exit_code
    if is_out_of_memory(error):
        error = _out_of_memory(error)
    if isinstance(error, OSError) and error.strerror:
        error = system_error(error)
    if not isinstance(error, HeadpruneError) and (module := _module_that_failed(error)):
        error = ModelError(
            f"the model's own code fails on what it was given: {with_type(error)}",
            where=f"transformers ({module})",
            hint="look for a row, or a value of config.json, that it doesn't take; --batch-size 1 gives it one row at a time; "
            "HEADPRUNE_DEBUG=1 shows where",
        )
    if not isinstance(error, HeadpruneError):
        # Not a mistake of the user's that we know: say so without burying them in a traceback. Exit 1 stays the gate's.
        error = HeadpruneError(
            f"something unexpected went wrong: {type(error).__name__}: {error}",
            where="headprune itself",
            hint="HEADPRUNE_DEBUG=1 shows where; please report it",
        )
    error.what, error.where, error.hint = map(as_options, (error.what, error.where, error.hint))
    with suppress(OSError, ValueError):  # stderr is full or closed: the exit code says it
        typer.echo(str(error), err=True)
    with suppress(OSError, ValueError, HeadpruneError):
        if options and (text := error_on_stdout(options, error)):
            typer.echo(text, nl=False)
    return error.exit_code
