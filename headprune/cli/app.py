"""The application: commands, version, and what becomes of errors."""

import io
import os
import sys
from typing import Annotated

import typer

from headprune.cli import check, convert, evaluate, export, heal, inspect, prune, run, score, sweep
from headprune.cli.options import add_command
from headprune.errors import HeadpruneError, is_out_of_memory

app = typer.Typer(
    name="headprune",
    help="Score every attention head of a transformer, prune the ones that don't matter, prove it, guard it in CI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, module in {
    "score": score,
    "prune": prune,
    "sweep": sweep,
    "eval": evaluate,
    "heal": heal,
    "check": check,
    "inspect": inspect,
    "convert": convert,
    "run": run,
    "export": export,
}.items():
    add_command(app, name, module.command, options=module.OPTIONS)


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


def _out_of_memory(error: Exception) -> HeadpruneError:
    return HeadpruneError(
        f"memory ran out: {' '.join(str(error).split())[:200] or 'on the CPU'}",
        where="headprune " + " ".join(sys.argv[1:2]),
        hint="use a smaller --batch-size or --max-length, --dtype bfloat16, or another --device",
    )


def main() -> None:
    """Run the command line; exit 0 fine, 1 a gate or proof said no, 2 anything else, 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a heatmap's bars gets question marks, not a crash after the work.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except HeadpruneError as error:
        if os.environ.get("HEADPRUNE_DEBUG") == "1":
            raise
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("\nstopped; nothing was left half-written", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HEADPRUNE_DEBUG") == "1":
            raise
        if is_out_of_memory(error):
            typer.echo(str(_out_of_memory(error)), err=True)
            sys.exit(2)
        # Not a mistake of the user's that we know: say so without burying them in a traceback. Exit 1 stays the gate's.
        typer.echo(
            f"error: something unexpected went wrong: {type(error).__name__}: {error}\n"
            "  in:   headprune itself\n"
            "  try:  HEADPRUNE_DEBUG=1 shows where; please report it",
            err=True,
        )
        sys.exit(2)
