"""What is refused before anything is loaded: options that are missing, and options that would do nothing where they stand."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from headprune.cli.options import ACTING, HEALING, LIMITS, ROWS, TIMES, WORK, Call, as_options
from headprune.config.checks import check_score, methods_of, num_steps, shows_prune
from headprune.errors import ConfigError

_JUDGED = ("metric", "higher_is_better", "trust_metric_code")
_ESTIMATED = (
    *("method", "objective", "normalize", "steps", "num_samples", "max_drop"),
    *("reconstruct", "allow_bias"),
)


class _Rule(NamedTuple):
    """Options of commands that act only where ``act`` says so, why they don't elsewhere, and what to do."""

    commands: Collection[str]
    options: Collection[str]
    act: Callable[[Call], bool]
    reason: str
    hint: str


_BUDGET = (
    lambda call: call.settings.plan.budgets,
    "it isn't said how many heads to keep",
    "`keep`",
    "headprune prune `keep=0.7`, or another budget: `heads`, `target_parameters`, `max_drop=1%`, ...",
)
_REQUIRED: dict[str, tuple[Callable[[Call], Any], str, str, str]] = {
    "prune": _BUDGET,
    "run": _BUDGET,
    "heal": (
        lambda call: call.settings.model.model,
        "no model is named to heal",
        "DIR",
        "headprune heal headprune-models/NAME",
    ),
    "check": (
        lambda call: call.settings.gate.baseline,
        "no baseline is named",
        "`baseline`",
        "headprune check MODEL `baseline=baseline.json` (`update_baseline` makes it)",
    ),
    "convert": (
        lambda call: call.settings.run.out,
        "no directory is named to write to",
        "`out`",
        "headprune convert MODEL `out=DIR`",
    ),
    "compare": (
        lambda call: len(call.own.runs) > 1,
        "two or more are compared",
        "RUN_OR_DIR",
        "headprune compare headprune-runs/001-roles headprune-runs/002-roles",
    ),
    "report": (
        lambda call: call.own.runs,
        "it isn't said what to report of",
        "RUN_OR_DIR",
        "headprune report headprune-models/NAME headprune-runs/NNN-sweep",
    ),
    "view": (
        lambda call: call.own.shown_text,
        "no text is named to look at",
        "`shown_text`",
        'headprune view MODEL --text "The cat sat on the mat."',
    ),
    "export": (
        lambda call: call.own.gguf,
        "no file is named to write to",
        "`gguf`",
        "headprune export MODEL `gguf=model.gguf`",
    ),
}


def refuse_missing(call: Call, command: str) -> None:
    """Refuse a command that lacks what it can't do without, and then steps and ways of scoring that lead nowhere.

    Raises:
        ConfigError: It does, or there are such settings.
    """
    if command in _REQUIRED:
        value, what, where, hint = _REQUIRED[command]
        if not value(call):
            raise ConfigError(what, where=where, hint=hint)
    _refuse_wrong_scoring(call, command)


def _refuse_wrong_scoring(call: Call, command: str) -> None:
    """Refuse steps that lead nowhere, and ways of scoring that a method doesn't have."""
    from headprune.runtime.launcher import launched_size

    if {"steps", "keep"} <= {*ACTING[command]}:  # of a sweep every point is a cut
        score, plan = call.settings.score, call.settings.plan
        for each in methods_of(score) if "methods" in ACTING[command] else (score,):
            check_score(each, plan, processes=launched_size())


def refuse_idle(call: Call, command: str) -> None:
    """Refuse an option that was given and that nothing reads.

    Raises:
        ConfigError: There is one.
    """
    for rule in _RULES:
        idle = [
            name for name in rule.options if name in call.given and not _is_taken_back(call, name)
        ]
        if idle and command in rule.commands and not rule.act(call):
            named = as_options(f"`{idle[0]}`")
            raise ConfigError(
                f"{named} has no effect here: {rule.reason}", where=named, hint=rule.hint
            )


def _is_taken_back(call: Call, name: str) -> bool:
    """Whether an option says that nothing is wanted (``--no-x``, ``--x none``)."""
    own = getattr(call.own, name, "")
    return call.settings.flat.get(name, own) in (None, False, "none")


def is_file_of_results(call: Call) -> bool:
    """Whether what is checked are results in a file, rather than a model."""
    return (call.settings.model.model or "").endswith(".json")


def _has_steps(call: Call) -> bool:
    settings = call.settings
    return any(num_steps(score, settings.plan) > 1 for score in methods_of(settings.score))


_RULES = (
    _Rule(
        ("score",),
        _JUDGED,
        lambda call: call.settings.score.objective == "metric",
        "heads are scored by the task's loss, or without any",
        "leave it out, or say --objective metric --method ablation",
    ),
    _Rule(
        ("score",),
        ("reconstruct",),
        _has_steps,
        "what is left is reconstructed between steps, and there is one",
        "leave it out, or say --keep 0.7 --steps 2",
    ),
    _Rule(
        ("score",),
        ("keep", "heads"),
        _has_steps,
        "all heads are scored once, as they are",
        "leave it out, or say --steps 2",
    ),
    _Rule(
        ("score",),
        ("protect_role",),
        _has_steps,
        "nothing is removed on the way, as all heads are scored once",
        "leave it out, or say --keep 0.7 --steps 2",
    ),
    _Rule(
        ("score", "sweep"),
        ("roles",),
        lambda call: bool(call.settings.plan.protect_role),
        "no role is protected",
        "leave it out, or say --protect-role sink",
    ),
    _Rule(
        ("analyze",),
        ("plan",),
        lambda call: call.settings.analyze.similarity,
        "heads aren't compared with each other",
        "leave it out, or say --similarity",
    ),
    _Rule(
        ("score", "prune", "run"),
        ("compile",),
        lambda call: bool(
            {"ablation", "only"} & {*call.settings.score.methods, call.settings.score.method}
        ),
        "compiling takes minutes, which only masking one head after the other makes up for",
        "leave it out, or score by ablation or only",
    ),
    _Rule(
        ("sweep",),
        ("steps", "reconstruct", "allow_bias"),
        lambda call: shows_prune(call.settings.score),
        "it acts on the curve prune, and the methods leave that out",
        "leave it out, or say --methods prune,gradient",
    ),
    _Rule(
        ("prune", "run", "sweep"),
        ("allow_bias",),
        lambda call: call.settings.reconstruct.reconstruct != "none",
        "biases are created for reconstruction",
        "leave it out, or reconstruct: --reconstruct bias",
    ),
    _Rule(
        ("prune", "run"),
        HEALING,
        lambda call: call.settings.distill.heal is not None,
        "nothing is trained",
        "leave it out, or say --heal auto",
    ),
    _Rule(
        ("prune", "run"),
        ("heal", *HEALING),
        lambda call: not call.own.dry_run,
        "no model is written",
        "leave it out, or leave out --dry-run",
    ),
    _Rule(
        ("prune", "run"),
        ("heal", *HEALING),
        lambda call: not call.own.stream,
        "from file to file nothing is trained",
        "leave it out, or leave out --stream",
    ),
    _Rule(
        ("prune", "run"),
        (*ROWS, "device", "batch_size", *_ESTIMATED, *TIMES),
        lambda call: call.settings.run.scores is None or not call.own.stream,
        "from file to file no data is read and nothing is run",
        "leave it out, or leave out --stream",
    ),
    _Rule(
        ("eval", "check"),
        ("eval_data",),
        lambda call: "data" not in call.given,
        "one data set is measured, and --data names it",
        "say --data alone",
    ),
    _Rule(
        ("eval", "check"),
        ("eval_split",),
        lambda call: "split" not in call.given,
        "one split is measured, and --split names it",
        "say --split alone",
    ),
    _Rule(
        ("check",),
        ("revision", *ROWS, *WORK, *TIMES),
        lambda call: not is_file_of_results(call),
        "results are read from a file, and nothing is measured",
        "leave it out, or name the model instead of its results",
    ),
    _Rule(
        ("check",),
        (*LIMITS[1:], "format"),
        lambda call: not call.own.update_baseline,
        "the baseline is written, and nothing is judged",
        "leave it out, or check without --update-baseline",
    ),
    _Rule(
        ("check",),
        ("format",),
        lambda call: not call.own.as_json or call.own.format == "json",
        "--json names another format",
        "say one of them",
    ),
    _Rule(
        ("eval", "check", "prune", "run"),
        ("latency_length", "latency_batch"),
        lambda call: call.settings.run.latency,
        "nothing is timed",
        "leave it out, or say --latency",
    ),
)
