"""Which options a command has, what becomes of them, and how errors name them. They are made from the fields of the settings.

Nothing heavy is imported here: ``--help`` must be there at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from headprune.cli.own_options import OwnOptions
from headprune.cli.surroundings import writing_stdout
from headprune.config import (
    BUDGETS,
    CHECK,
    SECTION_OF,
    AnalyzeSpec,
    DataSpec,
    GateSpec,
    Settings,
    load_settings,
)

if TYPE_CHECKING:
    from headprune.report.terminal import ConsoleProgress


_FIELD = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")
_NAMES = {*(name.removeprefix(CHECK) for name in SECTION_OF), *OwnOptions.model_fields}
_OFF = {"higher_is_better": "--lower-is-better"}


def as_options(text: str) -> str:
    """Return a message with options in place of the fields that it names in backticks.

    >>> as_options("`max_drop=1%` and `keep`; `latency=False`; `name: value`; `model`; `prune`")
    '--max-drop 1% and --keep; --no-latency; `name: value`; MODEL; `prune`'
    """
    return _FIELD.sub(_option, text)


def _option(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if name not in _NAMES:
        return match[0]
    dashed = name.removeprefix(_SHOWN).replace("_", "-")
    if value in ("True", "False"):
        return f"--{dashed}" if value == "True" else _OFF.get(name, f"--no-{dashed}")
    option = "MODEL" if name == "model" else f"--{dashed}"
    return option if value is None else f"{option} {value}"


TALK = ("as_json", "quiet", "verbose")
"""Options that every command has."""

_MODEL = ("model", "config", "revision", "stock_class")
ROWS = (*(name for name in DataSpec.model_fields if name != "batch_size"), "trust_metric_code")
WORK = ("device", "dtype", "batch_size")
TIMES = ("latency", "latency_length", "latency_batch")
LIMITS = tuple(GateSpec.model_fields)
_ROLES = ("protect_role", "roles")
_PLAN = ("multiple_of", "min_heads", "protect", "uniform", "gqa", "sites")
HEALING = ("heal_data", "heal_split", "heal_weights", "learning_rate", "lora", "trainer")
_SCORING = ("objective", "normalize", "num_samples", "compile")
_PRUNING = (
    *(*BUDGETS, "scores", "out", "overwrite", *_PLAN, *_ROLES, "method", *_SCORING, "steps"),
    *("recipe", "reconstruct", "allow_bias", "rearrange", "heal", *HEALING),
    *("stream", "no_baseline", "dry_run"),
    *(*ROWS, *WORK, *TIMES),
)
_UNJUDGED = ("task", "data", "split", "where", "text", "max_length", "limit", "seed")
_TRAINING = (
    *("teacher", "epochs", "max_steps", "learning_rate", "heal_weights", "lora", "trainer"),
    "run_dir",
)

ACTING: dict[str, tuple[str, ...]] = {
    "score": (
        *(*_MODEL, "methods", *_SCORING, "steps", "keep", "heads", "reconstruct", "by"),
        *("run_dir", *_ROLES, *ROWS, *WORK),
    ),
    "analyze": (
        *(*_MODEL, *AnalyzeSpec.model_fields, "num_samples", "by", "run_dir"),
        *(*_UNJUDGED, *WORK),
    ),
    "view": (
        *(*_MODEL, "shown_text", "text_pair", "layers", "roles", "scores", "out"),
        *("overwrite", "max_length", "device", "dtype"),
    ),
    "prune": (*_MODEL, *_PRUNING),
    "sweep": (
        *(*_MODEL, "methods", "points", "max_drop", *_PLAN, *_ROLES, *_SCORING, "steps"),
        *("reconstruct", "allow_bias", "latency", "out", "overwrite", *ROWS, *WORK),
    ),
    "eval": (*_MODEL, *ROWS, *WORK, *TIMES),
    "heal": (*_MODEL, "out", "overwrite", "num_samples", *_TRAINING, "resume", *ROWS, *WORK),
    "check": (*_MODEL, *LIMITS, "format", "update_baseline", *ROWS, *WORK, *TIMES),
    "inspect": (*_MODEL, "keep", *_PLAN),
    "convert": (*_MODEL, "dtype", "out", "overwrite", "allow_pickle"),
    "run": ("file", "revision", *_PRUNING),
    "export": (*_MODEL, "dtype", "gguf", "tokenizer", "overwrite"),
    "compare": ("runs", "run_dir"),
    "report": ("runs", "out", "pictures", "overwrite"),
    "methods": (),
    "tasks": (),
    "metrics": (),
    "roles": (),
}
"""The options that act on a command. It has no others but those of :data:`TALK`."""

_HELP = {
    (
        "score",
        "methods",
    ): "How heads are scored; several share what passes they can. (default: unique)",
    ("score", "keep"): "Share of the heads that would be kept, for --steps.",
    ("score", "heads"): "How many heads would be kept, for --steps.",
    (
        "score",
        "reconstruct",
    ): "How what is left will be reconstructed: it is before it is scored again, with --steps. "
    "(default: refit)",
    (
        "score",
        "run_dir",
    ): "Where scores.json is written, and scores.METHOD.json of further methods. "
    "(default: headprune-runs/NNN-METHOD)",
    (
        "view",
        "roles",
    ): "Roles to show; latest: those of the latest run; none: no roles. (default: beside the model)",
    ("analyze", "num_samples"): "Rows to look at, at most.",
    ("analyze", "run_dir"): "Where roles.json is written. (default: headprune-runs/NNN-roles)",
    ("view", "scores"): "Importance to show. (default: scores.json beside a pruned model)",
    ("view", "out"): "The page. (default: headprune-runs/NNN-view/view.html)",
    (
        "prune",
        "out",
    ): "Where the model goes. (default: headprune-models/NAME-keep-KEEP, NAME-heads-N, ...)",
    (
        "sweep",
        "methods",
    ): "Curves, side by side: prune is what headprune prune makes, others mask heads scored once. "
    "(default: prune,gradient,magnitude,random)",
    (
        "sweep",
        "max_drop",
    ): "Mark how many heads can be removed with the metric surely no worse than this: in its own units "
    "(0.01), or a share (1%).",
    ("sweep", "out"): "Where curves and pictures go. (default: headprune-runs/NNN-sweep)",
    ("heal", "model"): "What headprune prune saved.",
    ("heal", "out"): "Where the healed model goes. (default: DIR-healed)",
    ("heal", "num_samples"): "Rows to train on. (default: as when it was pruned; 1024)",
    (
        "heal",
        "run_dir",
    ): "Where checkpoints are kept. (default: headprune-runs/heal-..., until the model is saved)",
    ("check", "model"): "A model, which is evaluated, or results of `prune` or `eval --json`.",
    (
        "compare",
        "runs",
    ): "Two or more: runs, pruned models, roles.json, scores.json.",
    ("compare", "run_dir"): "Where compare.json is written. (default: headprune-runs/NNN-compare)",
    ("report", "out"): "The file to write. (default: NAME-report.html beside the first run)",
    ("report", "overwrite"): "Replace a report, or pictures, of that name.",
    ("export", "overwrite"): "Replace a GGUF file of this name.",
}
_METAVARS = {
    ("heal", "model"): "DIR",
    ("check", "model"): "MODEL|RESULTS.json",
    ("report", "out"): "FILE",
    ("view", "out"): "FILE",
}
_FLAGS = {"methods": ("--method", "--methods"), "as_json": ("--json",)}
_SHOWN = "shown_"  # begins names of options whose flag is a setting's elsewhere: --text
_ARGUMENTS = ("model", "file", "runs")
MEASURING = ("eval", "check")
"""Commands that read one data set."""


def takes_recipe(command: str) -> bool:
    """Whether a command reads a file of settings, and then works on a model."""
    return not {"config", "file"}.isdisjoint(ACTING[command])


def field_name(command: str, name: str) -> str:
    """Return the setting that an option of a command is: a limit of ``check`` is the gate's."""
    return f"{CHECK}{name}" if command == "check" and name in LIMITS else name


def annotation_of(command: str, name: str) -> Any:
    """Return what typer is to make of an option of a command."""
    section = _SECTIONS.get(SECTION_OF.get(field_name(command, name), ""), OwnOptions)
    field = section.model_fields[name]
    extra: Any = field.json_schema_extra
    key = (command, name)
    text, default, kind = _HELP.get(key, field.description or ""), field.default, field.annotation
    if "(default" not in text and default not in (None, (), False):
        text += f" (default: {'yes' if default is True else default})"
    shown: dict[str, Any] = {
        "help": text,
        "show_default": False,
        "metavar": _METAVARS.get(key, extra.get("metavar")),
    }
    values: Any = list[str] if get_origin(kind) is tuple else str
    if name in _ARGUMENTS:
        return Annotated[values | None, typer.Argument(**shown)]
    flags = [
        *_FLAGS.get(name, (f"--{name.removeprefix(_SHOWN).replace('_', '-')}",)),
        *filter(None, [extra.get("short")]),
    ]
    if bool in (kind, *get_args(kind)):
        off = extra.get("off", f"no-{flags[0][2:]}")
        flags[0] += f"/--{off}" if off else ""
        return Annotated[bool | None, typer.Option(*flags, **shown)]
    shown["metavar"] = shown["metavar"] or _metavar(kind)
    return Annotated[values | None, typer.Option(*flags, **shown)]


_SECTIONS = {name: type(section) for name, section in Settings()}


def _metavar(kind: Any) -> str | None:
    """Return what stands for a value in ``--help``: its choices, or N for a whole number, X for another."""
    kinds = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    choices = [
        part
        for kind in kinds
        for part in (get_args(kind) if get_origin(kind) is Literal else (kind,))
    ]
    if all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return {int: "N", float: "X"}.get(choices[0])


@dataclass(frozen=True)
class Call:
    """What a command gets.

    Args:
        settings: From options, file and defaults.
        own: Options that are no settings.
        progress: Where progress is reported.
        given: The names of all options that were given.
    """

    settings: Settings
    own: OwnOptions
    progress: "ConsoleProgress"
    given: frozenset[str] = frozenset()

    def show(self, value: Any) -> None:
        """Print a table, or text, to stdout."""
        from headprune.report.terminal import make_console, show

        with writing_stdout():
            show(make_console(), value)

    def write(self, text: str) -> None:
        """Write a document to stdout as it is."""
        with writing_stdout():
            typer.echo(text, nl=False)


def prepare(command: str, options: Mapping[str, Any]) -> Call:
    """Return the call of a command from its options as typer read them: None, or nothing in a list, where one wasn't given.

    Raises:
        ConfigError: A value can't be used, or the file's can't.
    """
    from headprune.report.terminal import ConsoleProgress
    from headprune.runtime.launcher import launched_rank

    given = {name: value for name, value in options.items() if value not in (None, [])}
    own = OwnOptions(**{name: given[name] for name in given if name in OwnOptions.model_fields})
    # Of several processes one talks.
    progress = ConsoleProgress(
        quiet=own.quiet or launched_rank() > 0, verbose=own.verbose, rewrite=as_options
    )
    fields = {
        field_name(command, name): given[name]
        for name in given
        if name not in OwnOptions.model_fields
    }
    if not takes_recipe(command):
        return Call(Settings.of(**fields), own, progress, frozenset(given))
    settings, origin = load_settings(
        fields,
        file=own.file or own.config,
        trust_metric_code=own.trust_metric_code,
        measures=command in MEASURING,
    )
    progress.notify(origin)
    return Call(settings, own, progress, frozenset(given))
