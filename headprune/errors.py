"""One family of errors. Each says what is wrong, where it came from, and what to do next.

The command line prints an error as three lines and leaves with its ``exit_code``; a traceback is shown only when
``HEADPRUNE_DEBUG=1``. Exit code 1 is kept for a proof or a gate that says no, 2 is anything else that stopped us.
"""

import logging
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache


class HeadpruneError(Exception):
    """Something the user can act on.

    Args:
        what: What is wrong, with the offending value in it.
        where: The file, option or module it came from.
        hint: What to do; a command where there is one.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"error: {self.what}\n  in:   {self.where}\n  try:  {self.hint}"


class ConfigError(HeadpruneError):
    """A setting that can't be used: an unknown key, a value out of range, two that contradict."""


class DataError(HeadpruneError):
    """Data that can't be read, or doesn't hold what the task needs."""


class ModelError(HeadpruneError):
    """A model that can't be loaded or run."""


class UnsupportedError(HeadpruneError):
    """An architecture, or a part of one, that is not proven to be prunable."""


class PlanError(HeadpruneError):
    """A plan that the architecture, the constraints or the scores don't allow."""


class CheckpointError(HeadpruneError):
    """A directory or file that can't be written, or that is not what it should be."""


class ProofError(HeadpruneError):
    """A proof said no: the result is wrong and nothing was kept of it."""

    exit_code = 1


class UnprovenError(HeadpruneError):
    """A proof could not be run, which is not the same as a proof that said no: what it was to prove is kept aside."""


# oneDNN says "could not create a primitive" where a size is too large or there is no room for its code; "descriptor": no kernel.
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemory|MemoryError|out of memory|allocate memory|bad_alloc|_STATUS_ALLOC_FAILED|could not create a primitive(?! desc)",
    re.IGNORECASE,
)


class MemoryLimitError(HeadpruneError):
    """Memory ran out on work that can't be done in smaller parts."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that ran out: allocators, CUDA and its libraries say so in errors of many classes."""
    known = isinstance(error, MemoryError)
    return known or (isinstance(error, RuntimeError) and says_out_of_memory(f"{error!r}"))


def says_out_of_memory(text: str) -> bool:
    """Whether a message is one of memory that ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


# Of transformers' errors for packages that aren't there.
_NAMED_PACKAGES = (
    re.compile(r"pip install (?:-\S+ |--\S+ )*['\"]?([\w.-]+)"),
    re.compile(r"requires the (\w+) library but"),
    re.compile(r"package `?(\w+)`? seems to be not installed"),
    re.compile(r"package for (\w+) doesn't seem to be installed"),
    re.compile(r"need to have (\w+) .*installed"),
)


def missing_package(error: BaseException) -> str | None:
    """Return the package that an error is about, where one isn't installed.

    >>> missing_package(ImportError("X requires the timm library but it was not found. `pip install timm`"))
    'timm'
    >>> missing_package(ImportError("cannot import name 'a' from 'b'"))
    """
    text = " ".join(str(error).split())
    named = [found[1].lower() for wording in _NAMED_PACKAGES if (found := wording.search(text))]
    if named and (isinstance(error, ImportError) or "install" in text):
        return named[0]
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return error.name
    cause = error.__cause__ or error.__context__
    return missing_package(cause) if cause is not None else None


def package_error(error: BaseException, *, what: str, where: str) -> ModelError | None:
    """Return what to raise where ``what`` needs a package that isn't installed; None where the error is about something else."""
    package = missing_package(error)
    if package is None:
        return None
    return ModelError(
        f"{what} needs the package {package}, which isn't installed",
        where=where,
        hint=f"pip install {package}, or take a model that doesn't need it",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception of a library says, or what it is called where it says nothing.

    >>> first_line(ValueError("no such layer")), first_line(KeyError())
    ('no such layer', 'KeyError')
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, KeyError) and error.args:  # it says the key alone
        line = f"KeyError: {line}"
    return line if len(line) <= 300 else f"{line[:300]}..."


def with_type(error: BaseException) -> str:
    """Return the type of an exception and the first line of what it says."""
    name, line = type(error).__name__, first_line(error)
    return line if line.startswith(name) else f"{name}: {line}"


# What transformers tells its own users to do doesn't help those of the command line.
_ADVICE = re.compile(
    r"ignore_mismatched_sizes|above report|trust_remote_code|from_tf|huggingface\.co|one of: *$"
)


def what_it_says(error: BaseException) -> str:
    """Return the first line of what transformers says; where that is advice for its own users, what the error is called.

    >>> what_it_says(ValueError("num_heads is 0"))
    'num_heads is 0'
    >>> what_it_says(RuntimeError("You set `ignore_mismatched_sizes` to `False`. See the above report"))
    'RuntimeError'
    """
    line = first_line(error)
    return type(error).__name__ if _ADVICE.search(line) else line


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``known``, the likeliest first, as the end of a sentence.

    >>> did_you_mean("scor", ["score", "prune"])
    "did you mean 'score'? known: score, prune"
    >>> did_you_mean("xyz", ["score", "prune"])
    'known: score, prune'
    """
    names = list(known)
    close = get_close_matches(word, names, n=1)
    listed = f"known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listed}" if close else listed


@cache
def warn_missing(part: str, *, consequence: str) -> None:
    """Log, once, that a private part of a library isn't where it was: a newer version moved it; and what becomes of that."""
    logging.getLogger("headprune").warning(
        "%s is not there (a newer version than this headprune knows?), so %s", part, consequence
    )
