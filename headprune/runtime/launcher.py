"""What a launcher (``torchrun``, ``accelerate launch``) says of its processes, read without torch."""

import os
from math import gcd

from headprune.errors import ConfigError


def launched_size() -> int:
    """Return how many processes a launcher started; 1 without one.

    Raises:
        ConfigError: The launcher's variable is no such number.
    """
    return variable("WORLD_SIZE", default=1, least=1)


def launched_rank() -> int:
    """Return which of the launcher's processes this is, from 0 on; 0 is the one that talks.

    Raises:
        ConfigError: The launcher's variable is no such number.
    """
    return variable("RANK", default=0, least=0, below=launched_size())


def divided(rows: int, times: int) -> tuple[int, int]:
    """Return what each process does of a step that takes so many rows so many times: together they make that step.

    Raises:
        ConfigError: It can't be divided among them.
    """
    processes = launched_size()
    shared = gcd(times, processes)
    each, left_over = divmod(rows, processes // shared)
    if left_over:
        raise ConfigError(
            f"{times} times {rows} rows a step can't be divided among {processes} processes",
            where="`batch_size`",
            hint=f"give a multiple of {processes // shared}",
        )
    return each, times // shared


def variable(name: str, *, default: int, least: int, below: int | None = None) -> int:
    """Return a number that a launcher's variable holds.

    Raises:
        ConfigError: It is no such number.
    """
    text = os.environ.get(name, str(default))
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if number < least or (below is not None and number >= below):
        expected = f"from {least} on" if below is None else f"from {least} to {below - 1}"
        raise ConfigError(
            f"{name} is {text!r}, and it should be a whole number {expected}",
            where=f"the environment variable {name}",
            hint=f"let torchrun or accelerate launch set it, or unset {name} to run in one process",
        )
    return number
