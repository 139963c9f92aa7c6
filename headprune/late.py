"""Functions that catalogues name by text, so that a catalogue imports nothing heavy."""

from importlib import import_module
from typing import Any


def load_function(name: str) -> Any:
    """Return what ``module:attribute`` names, importing the module now.

    >>> load_function("math:sqrt")(9.0)
    3.0
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
