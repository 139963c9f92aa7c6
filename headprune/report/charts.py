"""Charts: each is specified once, and drawn into a page, or as a picture for papers and cards. The colour-blind can read them."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from headprune.report.parts import Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without the yellow that is too light for a line; shapes and dashes for what has no colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
INK, SOFT, LINE, PAPER = "#222222", "#555555", "#e6e6e6", "#ffffff"

_IN_A_PAGE = {colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)} | {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
}
"""What a page calls these colours: there they follow its light or dark."""

_STYLE: Any = {
    "svg.hashsalt": "headprune",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
    "grid.color": LINE,
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_COLOUR = re.compile("#[0-9a-f]{6}")
_DIGITS = re.compile(r"\d+\.\d{3,}")
_REFERENCE = re.compile(r"(?:^|url\()#([^)\s]+)")
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_PIXELS_PER_INCH = 96
_LINE_HEIGHT = 14
"""Pixels that a line of text needs."""
_CAPTION_WIDTH = 125
"""Letters of a caption's line, in a picture."""
WIDTHS = {"wide": 880, "narrow": 340}
"""Pixels across a chart, on a screen and on a telephone."""


@dataclass
class Drawing:
    """A figure that a chart is drawn on, and what its marks say when they are pointed at.

    Args:
        figure: The figure, empty.
        is_narrow: Whether it is for a telephone.
        marks: What the marks say, artist by artist.
    """

    figure: "Figure"
    is_narrow: bool = False
    marks: list[tuple[str, ...]] = field(default_factory=list)

    def mark(self, artist: "Artist", texts: Sequence[str]) -> None:
        """Let every element of an artist (a point of a scatter, a rectangle) say its text when it is pointed at."""
        artist.set_clip_on(False)  # or each has a clip path of its own in an SVG
        artist.set_gid(f"mark-{len(self.marks)}")
        self.marks.append(tuple(texts))

    def short(self, text: str) -> str:
        """Return a name as far as there is room for it beside a chart; marks and tables have it whole."""
        most = 20 if self.is_narrow else 50
        return text if len(text) <= most else f"{text[: most - 1]}…"

    def label_rows(self, axes: "Axes", labels: Sequence[str], *, height: float = 20.0) -> None:
        """Name the rows of a chart, so many pixels high each, from above; where there is no room for all, only some."""
        apart = ceil(_LINE_HEIGHT / height)
        axes.set_yticks(range(0, len(labels), apart), [*map(self.short, labels)][::apart])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    def name_colours(self, axes: "Axes", *, columns: int) -> None:
        """Put a legend above a chart, from the left."""
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0}
        axes.legend(ncols=columns, **place)


@dataclass(frozen=True)
class Chart:
    """One chart, whatever it is drawn for.

    Args:
        name: Of its picture's file.
        title: What it shows, in a few words.
        caption: How it is read, in a sentence.
        draw: Draws it.
        heights: Its height in pixels, wide and narrow.
        table: The same numbers.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Drawing], None]
    heights: tuple[int, int]
    table: Table

    kind = "chart"


def picture(chart: Chart, *, kind: Literal["png", "svg"]) -> bytes:
    """Draw a chart for a paper or a card, with its title.

    The same chart makes the same bytes: no date, no random names, whatever the user's own matplotlib settings are.
    """
    lines = textwrap.wrap(chart.caption, _CAPTION_WIDTH)
    with _own_style():
        drawing = _drawn(chart, "wide", title=24 + 15 * len(lines))
        figure = drawing.figure
        inch = 1 / _PIXELS_PER_INCH / figure.get_figheight()
        figure.text(0, 1, chart.title, va="top", fontsize=11.5, fontweight="bold")
        figure.text(0, 1 - 20 * inch, "\n".join(lines), va="top", fontsize=9, color=SOFT)
        return _saved(figure, kind, bbox_inches="tight", pad_inches=0.1)


def inline(chart: Chart) -> dict[str, str]:
    """Draw a chart as SVG for a page, wide and narrow: text stays text, colours are the page's.

    Marks of the wide one have titles; those of the narrow one are the same marks in the same order.
    """
    svgs = {}
    for width in WIDTHS:
        name = f"{chart.name}-{width}"
        with _own_style(**{"svg.fonttype": "none", "svg.hashsalt": name}):
            drawing = _drawn(chart, width)
            drawing.figure.patch.set_visible(False)
            raw = _saved(drawing.figure, "svg")
        svgs[width] = _fitted(raw, drawing.marks, name=name, has_titles=width == "wide")
    return svgs


def _drawn(chart: Chart, width: str, *, title: int = 0) -> Drawing:
    """Draw a chart below so many pixels that are left for a title."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = chart.heights[width == "narrow"] + title
    size = (WIDTHS[width] / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH)
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - title / height))
    drawing = Drawing(Figure(figsize=size, layout=layout), is_narrow=width == "narrow")
    chart.draw(drawing)
    return drawing


def _saved(figure: "Figure", kind: Literal["png", "svg"], **more: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Of a name in letters that the font lacks: a page shows it in the reader's font.
        warnings.filterwarnings("ignore", message=".*missing from")
        figure.savefig(buffer, format=kind, dpi=160, metadata=_NO_DATE[kind], **more)
    return buffer.getvalue()


@contextmanager
def _own_style(**more: Any) -> Iterator[None]:
    """Draw by matplotlib's defaults and these settings, and leave the user's as they were."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        style: Any = {**_STYLE, **more}
        mpl.rcParams.update(style)
        yield


def _fitted(raw: bytes, marks: Sequence[tuple[str, ...]], *, name: str, has_titles: bool) -> str:
    """Return an SVG that fits a page: as wide as there is room, with names of its own, marks that say what they are."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(raw)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for number, texts in enumerate(marks):
        group = root.find(f".//*[@id='mark-{number}']")
        elements = [] if group is None else list(_elements(group))
        if group is not None:
            _share_style(group, elements)
        for element, text in zip(elements, texts, strict=True):
            element.set("class", "mark")
            if has_titles:
                ElementTree.SubElement(element, f"{{{_SVG}}}title").text = text
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    _with_own_names(root, name)
    return ElementTree.tostring(root, encoding="unicode")


def _share_style(group: ElementTree.Element, elements: Sequence[ElementTree.Element]) -> None:
    """Say once, of the group, what all its elements look like: of a large model there are thousands."""
    styles = [dict.fromkeys(element.get("style", "").split("; ")) for element in elements]
    shared = set.intersection(*map(set, styles)) if styles else set()
    group.set("style", "; ".join(sorted(shared)))
    for element, style in zip(elements, styles, strict=True):
        own = "; ".join(each for each in style if each not in shared)
        element.attrib.pop("style", None)
        element.attrib.update({"style": own} if own else {})


def _elements(group: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield what is drawn in a group, and not what is only defined in it."""
    for child in group:
        if child.tag in (f"{{{_SVG}}}path", f"{{{_SVG}}}use"):
            yield child
        elif child.tag == f"{{{_SVG}}}g":
            yield from _elements(child)


def _with_own_names(root: ElementTree.Element, name: str) -> None:
    """Prefix the names that something refers to, and drop others: a page has each once. Take the page's colours.

    Digits and spaces that nobody sees are left out: a large model has thousands of marks.
    """
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {found for value in values for found in _REFERENCE.findall(value)}
    for element in root.iter():
        element.text, element.tail = (
            part and part.strip() for part in (element.text, element.tail)
        )
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            text = _REFERENCE.sub(lambda found: found[0].replace("#", f"#{name}-"), value)
            if key in ("d", "x", "y"):
                text = " ".join(_DIGITS.sub(lambda digits: f"{float(digits[0]):.2f}", text).split())
            if key == "style":
                text = _COLOUR.sub(lambda colour: _IN_A_PAGE.get(colour[0], colour[0]), text)
            element.set(key, f"{name}-{text}" if key == "id" else text)


def numbered(name: str, index: int) -> str:
    """Return the name of one of several charts: ``heads``, ``heads-2``, ..."""
    return name if index == 0 else f"{name}-{index + 1}"


def square(x: int, y: int, *, gap: float) -> list[tuple[float, float]]:
    """Return the corners of a cell of a grid, a little smaller than the cell."""
    half = 0.5 - gap
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def cell_ink(colour: str) -> str:
    """Return the colour of letters on a cell: of these two neither is the page's, which would change with its light."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#111112" if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else "#fffffe"
