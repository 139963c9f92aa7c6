"""How errors name settings: below the command line by field, on it by option."""

import re

from headprune.cli.own import OwnOptions
from headprune.config import CHECK, SECTION_OF

_FIELD = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")
_NAMES = {*(name.removeprefix(CHECK) for name in SECTION_OF), *OwnOptions.model_fields}
_ARGUMENTS = {"model": "MODEL"}
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
    dashed = name.replace("_", "-")
    if value in ("True", "False"):
        return f"--{dashed}" if value == "True" else _OFF.get(name, f"--no-{dashed}")
    option = _ARGUMENTS.get(name, f"--{dashed}")
    return option if value is None else f"{option} {value}"
