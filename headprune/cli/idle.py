"""Options that would do nothing where they stand: refused, for whoever gives one expects something of it."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from headprune.cli.options import Call
from headprune.cli.settings import ROWS, TIMES, WORK
from headprune.errors import ConfigError

if TYPE_CHECKING:
    from headprune.config import Recipe

LIMITS = ("max_drop", "min_recovery", "max_parameters", "max_latency_increase")
_JUDGED = ("metric", "higher_is_better", "trust_metric_code")
_SCORING = ("method", "objective", "normalize", "steps", "num_samples", "max_drop")
_RECONSTRUCTION = ("reconstruct", "allow_bias")


class _Rule(NamedTuple):
    """Options that act only where ``act`` says so, why they don't elsewhere, and what to do."""

    options: Iterable[str]
    act: "Callable[[Call], bool]"
    why: str
    hint: str


def refuse_idle(call: Call, command: str) -> None:
    """Refuse what the command line says and nothing reads.

    Raises:
        ConfigError: There is such an option.
    """
    for rule in (*_RULES.get(command, ()), *_TIMED):
        idle = [name for name in rule.options if _is_said(call, name)]
        if idle and not rule.act(call):
            option = f"--{idle[0].replace('_', '-')}"
            raise ConfigError(
                f"{option} has no effect here: {rule.why}", where=option, hint=rule.hint
            )


def _is_said(call: Call, name: str) -> bool:
    """Whether the command line says it, other than to take it back (``--no-x``, ``--x none``)."""
    value = getattr(call.recipe, name, call.own.get(name, True))
    return name in call.said and value not in (False, "none")


def _is_file_of_results(call: Call) -> bool:
    return (call.recipe.model or "").endswith(".json")


def _methods(recipe: "Recipe") -> tuple[str | None, ...]:
    return recipe.methods or (recipe.method,)


def _has_steps(call: Call) -> bool:
    from headprune.workflows.validate import num_steps

    said = [call.recipe.model_copy(update={"method": name}) for name in _methods(call.recipe)]
    return any(num_steps(recipe, recipe) > 1 for recipe in said)


_COMPILE = _Rule(
    ("compile",),
    lambda call: "ablation" in _methods(call.recipe),
    "only ablation runs blocks often enough",
    "leave it out, or score by ablation",
)
_ONE_DATA_SET = (
    _Rule(
        ("eval_data",),
        lambda call: "data" not in call.said,
        "one data set is measured, and --data names it",
        "say --data alone",
    ),
    _Rule(
        ("eval_split",),
        lambda call: "split" not in call.said,
        "one split is measured, and --split names it",
        "say --split alone",
    ),
)
_TIMED = (
    _Rule(
        ("latency_length", "latency_batch"),
        lambda call: call.recipe.latency,
        "nothing is timed",
        "leave it out, or say --latency",
    ),
)
_RULES: dict[str, tuple[_Rule, ...]] = {
    "score": (
        _Rule(
            _JUDGED,
            lambda call: call.recipe.objective == "metric",
            "heads are scored by the task's loss, or without any",
            "leave it out, or say --objective metric --method ablation",
        ),
        _Rule(
            ("reconstruct",),
            _has_steps,
            "what is left is reconstructed between steps, and there is one",
            "leave it out, or say --keep 0.7 --steps 2",
        ),
        _Rule(
            ("keep", "heads"),
            _has_steps,
            "all heads are scored once, as they are",
            "leave it out, or say --steps 2",
        ),
        _COMPILE,
    ),
    "prune": (
        _COMPILE,
        _Rule(
            ("allow_bias",),
            lambda call: call.recipe.reconstruct != "none",
            "biases are created for reconstruction",
            "leave it out, or reconstruct: --reconstruct bias",
        ),
        _Rule(
            (*ROWS, "device", "batch_size", *_SCORING, *_RECONSTRUCTION, *TIMES),
            lambda call: call.recipe.scores is None or not call.own.get("stream"),
            "from file to file no data is read and nothing is run",
            "leave it out, or leave out --stream",
        ),
    ),
    "eval": _ONE_DATA_SET,
    "check": (
        *_ONE_DATA_SET,
        _Rule(
            ("revision", *ROWS, *WORK, *TIMES),
            lambda call: not _is_file_of_results(call),
            "results are read from a file, and nothing is measured",
            "leave it out, or name the model instead of its results",
        ),
        _Rule(
            (*LIMITS, "format"),
            lambda call: not call.own.get("update_baseline"),
            "the baseline is written, and nothing is judged",
            "leave it out, or check without --update-baseline",
        ),
        _Rule(
            ("format",),
            lambda call: not call.json or call.own.get("format") == "json",
            "--json names another format",
            "say one of them",
        ),
    ),
}
