"""What a section of a report is made of, beside its charts: tables, tiles, sentences, text as it is."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "even"]


@dataclass(frozen=True)
class Table:
    """Words and numbers under titles; the first column names the row.

    Args:
        titles: Of the columns.
        rows: The cells.
        right: Columns that end flush.
        caption: What it shows.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    caption: str = ""

    kind = "table"


@dataclass(frozen=True)
class Tile:
    """One number that matters.

    Args:
        label: What it is of.
        value: The number.
        detail: What is to be known of it.
        tone: Whether it is good.
    """

    label: str
    value: str
    detail: str = ""
    tone: Tone = "even"


@dataclass(frozen=True)
class Tiles:
    """A few numbers beside each other, under a sentence."""

    heading: str
    tiles: tuple[Tile, ...]

    kind = "tiles"


@dataclass(frozen=True)
class Prose:
    """A sentence; ``tone`` says whether it is good."""

    text: str
    tone: Tone = "even"

    kind = "prose"


@dataclass(frozen=True)
class Code:
    """Text as it is, under what it is."""

    title: str
    text: str

    kind = "code"
