"""What wins where a setting is said twice: what was said last, with all that belongs to it."""

from collections.abc import Collection, Mapping
from typing import Any

from headprune.errors import ConfigError

TARGETS = ("target_parameters", "target_flops", "target_kv_cache", "target_latency")
BUDGETS = ("keep", "heads", *TARGETS)
"""Settings that say how much stays: one of them at a time. ``max_drop`` is one, too, where it isn't the limit of a check."""

_BELONGS_TO: dict[str, tuple[str, ...]] = {
    "model": ("revision",),
    "data": ("split",),
    "eval_data": ("eval_split",),
    "metric": ("higher_is_better",),
    "epochs": ("max_steps",),
    **dict.fromkeys(("method", "recipe", "objective", "normalize"), ("scores",)),
}
"""What is said of a setting, and means nothing beside another value of it."""


def merged(
    read: Mapping[str, Any], said: Mapping[str, Any], *, measures: bool = False
) -> dict[str, Any]:
    """Return the settings of a file with what was said in their place.

    Args:
        read: What the file says, or the record of a model.
        said: What the command line says.
        measures: Whether the command reads one data set, which it measures: then that is what was said, whatever data the
            file would have report.

    >>> merged({"max_drop": 0.01, "seed": 3}, {"heads": 9})
    {'seed': 3, 'heads': 9}
    >>> merged({"data": "a", "eval_data": "b"}, {"data": "c"}, measures=True)
    {'data': 'c'}
    """
    gone = {name for setting in said for name in _BELONGS_TO.get(setting, ())}
    if "data" in said and not read.get("eval_data"):
        gone |= {"eval_split"}
    if measures and "data" in said:
        gone |= {"eval_data", "eval_split"}
    gone |= _displaced_budgets(read, said)
    both = {**{name: value for name, value in read.items() if name not in gone}, **said}
    if measures and "split" in said and not said.keys() & {"eval_data", "eval_split"}:
        both["eval_split"] = said["split"]
    return both


def _displaced_budgets(read: Mapping[str, Any], said: Collection[str]) -> set[str]:
    """Return the budgets of a file that give way to one that was said; the limit of its check stays."""
    if not any(name in said for name in (*BUDGETS, "max_drop")):
        return set()
    is_limit = read.get("baseline") is not None or any(read.get(name) for name in BUDGETS)
    return {*BUDGETS} if is_limit else {*BUDGETS, "max_drop"}


def refuse_second_budget(said: Mapping[str, Any]) -> None:
    """Refuse a tolerance beside another budget. In a file it is the limit of a check then; on the command line two contradict.

    Raises:
        ConfigError: See above.
    """
    others = [name for name in BUDGETS if said.get(name) is not None]
    if others and said.get("max_drop") is not None:
        raise ConfigError(
            "how much goes is said twice: by a tolerance, and by another budget",
            where=f"--max-drop {said['max_drop']}, --{others[0].replace('_', '-')} {said[others[0]]}",
            hint="leave one of them out",
        )
