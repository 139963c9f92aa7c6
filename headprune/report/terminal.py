"""How text reaches a terminal: consoles, progress on stderr, and tables that never lose a digit.

A table has columns where there is room, and one value below the other where there isn't.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

_GAP = "  "


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that shows names as they are: [ ] in a path is no markup, and :x: no picture."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def show(console: Console, value: RenderableType) -> None:
    """Print a value; a line that is longer than the console goes on, rather than being cut."""
    console.print(value, crop=False)


def line(*parts: str | tuple[str, str]) -> Text:
    """Return text that is one line however narrow the console is, to be copied."""
    return Text.assemble(*parts, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Prose:
    """Text that goes on in the next line between words, never within one: a path or a number stays whole."""

    text: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        yield from wrapped(self.text, options.max_width)


def prose(text: str | Text, *, style: str = "") -> Prose:
    """Return text that is wrapped between words."""
    return Prose(text if isinstance(text, Text) else Text(text, style=style))


def wrapped(text: Text, width: int) -> list[Text]:
    """Return the lines of a text, as long as their words allow."""
    found = []
    for paragraph in text.split("\n", allow_blank=True):
        breaks, start = [], 0
        for word in re.finditer(r"\S+", paragraph.plain):
            if word.start() > start and cell_len(paragraph.plain[start : word.end()]) > width:
                start = word.start()
                breaks.append(start)
        for part in paragraph.divide(breaks):
            part.rstrip()
            part.no_wrap, part.overflow = True, "ignore"
            found.append(part)
    return found


@dataclass(frozen=True)
class Row:
    """The cells of a row, and its style."""

    cells: tuple[str, ...]
    style: str = ""


@dataclass(frozen=True)
class Sheet:
    """Rows of numbers and names under titles.

    Where the console is too narrow for that, each row is written as lines of a title and a value.

    Args:
        rows: What it shows; a row without cells is an empty line, and one of a single cell a heading.
        titles: Of the columns; none, no head.
        right: Columns that end flush.
        prose: A column of words, which may go on in the next line.
    """

    rows: Sequence[Row]
    titles: Sequence[str] = ()
    right: frozenset[int] = frozenset()
    prose: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        widths = self._widths(options.max_width)
        yield from (self._lines(options) if widths is None else self._columns(widths))

    def _widths(self, room: int) -> list[int] | None:
        """Return the widths of the columns; None where there is no room for them."""
        heads = [tuple(self.titles)] if self.titles else []
        filled = [*heads, *(row.cells for row in self.rows if len(row.cells) > 1)]
        widths = [max(map(cell_len, column)) for column in zip(*filled, strict=True)]
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - room
        if excess <= 0:
            return widths
        if self.prose is None:
            return None
        words = [word for cells in filled for word in cells[self.prose].split()]
        left = widths[self.prose] - excess
        if left < max(20, *map(cell_len, words)):
            return None
        return [left if place == self.prose else width for place, width in enumerate(widths)]

    def _columns(self, widths: Sequence[int]) -> Iterator[Text]:
        rows = [Row(tuple(self.titles), "bold"), *self.rows] if self.titles else self.rows
        for row in rows:
            if len(row.cells) == 1:
                yield line((row.cells[0], row.style))
                continue
            parts = [
                self._wrapped(cell, widths[place] if place == self.prose else None)
                for place, cell in enumerate(row.cells)
            ]
            for number in range(max(map(len, parts), default=1)):
                cells = [part[number] if number < len(part) else "" for part in parts]
                padded = [
                    " " * (width - cell_len(cell)) + cell
                    if place in self.right
                    else cell + " " * (width - cell_len(cell))
                    for place, (cell, width) in enumerate(zip(cells, widths, strict=False))
                ]
                yield line((_GAP.join(padded).rstrip(), row.style))

    def _lines(self, options: ConsoleOptions) -> Iterator[Text]:
        """Yield a row's first cell, then each other one below it, behind its title."""
        for row in self.rows:
            if not row.cells:
                continue
            titles = self.titles or [""] * len(row.cells)
            name = f"{titles[0]}: " if titles[0] and len(row.cells) > 1 else ""
            yield line((name + row.cells[0], row.style or "bold"))
            for place, (title, cell) in enumerate(zip(titles, row.cells, strict=False)):
                if not (place and cell):
                    continue
                head = f"{_GAP}{title}: " if title else _GAP
                room = max(20, options.max_width - cell_len(head))
                for part in self._wrapped(cell, room if place == self.prose else None):
                    yield line((head + part, row.style))
                    head = " " * cell_len(head)

    def _wrapped(self, text: str, width: int | None) -> list[str]:
        if width is None:
            return text.split("\n")
        return [part.plain for part in wrapped(Text(text), width)]


def key_value_table(rows: dict[str, Any]) -> RenderableType:
    """Show names and values."""
    return Sheet([Row((name, str(value))) for name, value in rows.items()], prose=1)


class ConsoleProgress:
    """Progress and remarks on stderr; silent when asked, plain lines where nobody watches.

    ``rewrite`` turns the fields that a remark names into what they are called where it is read.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        rewrite: Callable[[str], str] = lambda text: text,
    ) -> None:
        self._rewrite = rewrite
        self.console = make_console(stderr=True)
        self.quiet = quiet
        self.verbose = verbose

    def notify(self, text: str) -> None:
        """Tell the user what is going on; where stderr can't be written to, nobody listens, and the work goes on.

        A terminal's lines end between words; where nobody watches each remark is one line.
        """
        text = self._rewrite(text)
        if not self.quiet:
            try:
                if self.console.is_terminal:
                    self.console.print(prose(text), style="dim", crop=False)
                else:
                    self.console.print(text, style="dim", soft_wrap=True)
            except (OSError, SystemExit):  # rich turns a broken pipe into the end of the program
                self.quiet = True

    def track(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield ``items`` under a progress bar with an estimate of the time left; without a terminal, a line per tenth."""
        if self.quiet or not items:
            yield from items
        elif self.console.is_terminal:
            yield from self._bar(items, description)
        else:
            step = max(1, len(items) // 10)
            for index, item in enumerate(items):
                yield item
                if (index + 1) % step == 0 or index + 1 == len(items):
                    self.notify(f"{description}: {index + 1}/{len(items)}")

    def _bar(self, items: Sequence[T], description: str) -> Iterable[T]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=not self.verbose) as progress:
            yield from progress.track(items, description=description)
