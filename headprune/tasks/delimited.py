"""Text files: their encoding, their lines, and fields between commas or tabs; a cell is the text that was written."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from headprune.untrusted.directories import kind_by_content

_ENDS = re.compile(r"\r\n|\n|\r")
_END_NAMES = {"\n": "\\n", "\r\n": "\\r\\n", "\r": "\\r"}
_SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "';'", "|": "'|'"}
_TO_UTF8 = "convert it: iconv -f {} -t UTF-8 FILE > NEW_FILE"
_MARKS = (
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "UTF-16"),
)
_OPENS = re.compile(r'(?:^|[\t\r\n])"')
_QUOTED = re.compile(r'"[^"]*+(?:""[^"]*+)*+"')


class FormatError(ValueError):
    """A file, or a line of it, is not what its format says.

    Args:
        what: What is wrong.
        hint: What to do.
        line: The line, counted from 1; None where no line is to blame.
    """

    def __init__(self, what: str, *, hint: str, line: int | None = None) -> None:
        super().__init__(what if line is None else f"line {line}: {what}")
        self.hint = hint
        self.line = line or 0


def read_text(path: Path) -> str:
    """Return a text in UTF-8, without the mark that some editors put in front.

    Raises:
        FormatError: It is something else.
    """
    raw = path.read_bytes()
    for marks, name in _MARKS:
        if raw.startswith(marks):
            raise FormatError(
                f"the file's encoding is {name}, not UTF-8", hint=_TO_UTF8.format(name)
            )
    refuse_other_content(raw, "text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"the byte 0x{raw[error.start]:02x} is not UTF-8: the file has another encoding",
            hint=_TO_UTF8.format("LATIN1"),
            line=len(_ENDS.findall(raw[: error.start].decode("latin-1"))) + 1,
        ) from error
    if "\0" in text:
        wide = 3 * text.count("\0") > len(text)
        raise FormatError(
            "it holds a NUL character" + ": the encoding may be UTF-16" * wide,
            hint=_TO_UTF8.format("UTF-16") if wide else "repair or remove the line",
            line=len(_ENDS.findall(text[: text.index("\0")])) + 1,
        )
    return text


def refuse_other_content(raw: bytes, expected: str) -> None:
    """Refuse a file that holds something else than its ending tells.

    Raises:
        FormatError: It does.
    """
    what, hint = kind_by_content(raw) or ("", expected)
    if not hint.endswith(expected):  # it is what it is called, and damaged
        raise FormatError(f"the file is {what}, not a {expected} file", hint=hint)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without their ends; a line ends where files end lines, not at other breaks of Unicode."""
    lines = _ENDS.split(text)
    return lines if lines[-1] else lines[:-1]


class Record(NamedTuple):
    """The cells of a row, which of them were in quotation marks, and the lines that it begins and ends on."""

    cells: list[str]
    quoted: tuple[bool, ...]
    line: int
    last_line: int

    @property
    def is_blank(self) -> bool:
        """Whether this is an empty line."""
        return self.cells == [""] and not any(self.quoted)


def read_delimited(text: str, separator: str) -> tuple[Record, list[Record]]:
    """Return the header and the rows of a text of comma or tab separated fields.

    Fields that begin with a quotation mark are quoted (RFC 4180). A file with tabs may be unquoted as well, every line a row; see
    :func:`_quoted_or_not`.

    Raises:
        FormatError: A row has more or fewer fields than the header, a quotation mark is not closed, lines end in different ways,
            or the separator is another one.
    """
    first = _ENDS.split(text, maxsplit=1)[0]
    outside = _QUOTED.sub("", first)
    others = [mark for mark in _SEPARATOR_NAMES if mark != separator and mark in outside]
    if others and separator not in outside:
        raise FormatError(
            f"the columns seem to be separated by {_SEPARATOR_NAMES[others[0]]}, not by {_SEPARATOR_NAMES[separator]}",
            hint="use the separator that the file's ending tells: commas in .csv, tabs in .tsv; the first line is the header",
            line=1,
        )
    if separator == "\t" and _OPENS.search(text):
        return _quoted_or_not(text)
    reader = _unquoted if separator == "\t" else _quoted
    return _with_header(reader(text, separator), separator)


def _quoted_or_not(text: str) -> tuple[Record, list[Record]]:
    """Read tabs with fields that begin with a quotation mark.

    They are quoted where the header is, where only that reading is possible, or where every such field is as writers quote:
    because its text needs it, or as the whole column is. Else every line is a row, and quotation marks are characters.
    """
    unquoted, quoted = _attempt(_unquoted, text), _attempt(_quoted, text)
    header = _ENDS.split(text, maxsplit=1)[0].split("\t")
    if all(_QUOTED.fullmatch(name) for name in header):
        return _result(quoted)
    if isinstance(quoted, FormatError):
        both_fail = isinstance(unquoted, FormatError) and unquoted.line < quoted.line
        return _result(quoted if both_fail else unquoted)
    if not isinstance(unquoted, FormatError) and not _as_writers_quote(*quoted):
        return unquoted
    widths = [line.count("\t") + 1 for line in _ENDS.split(text)]
    for record in quoted[1]:
        ends = {widths[record.line - 1], widths[record.last_line - 1]}
        if record.last_line > record.line and ends == {len(header)}:
            raise FormatError(
                f"a text begins with a quotation mark here, or a quoted field that ends on line {record.last_line}: "
                "both can be meant",
                hint="quote the header's names too where quotation marks enclose fields; or give the rows as .csv or .jsonl",
                line=record.line,
            )
    return quoted


def _attempt(
    reader: Callable[[str, str], Iterator[Record]], text: str
) -> tuple[Record, list[Record]] | FormatError:
    try:
        return _with_header(reader(text, "\t"), "\t")
    except FormatError as error:
        return error


def _result(attempt: tuple[Record, list[Record]] | FormatError) -> tuple[Record, list[Record]]:
    if isinstance(attempt, FormatError):
        raise attempt
    return attempt


def _as_writers_quote(header: Record, rows: Sequence[Record]) -> bool:
    """Whether no field holds a quotation mark outside of quotes, and each is quoted for a reason."""
    for column in range(len(header.cells)):
        quoted = [row.cells[column] for row in rows if row.quoted[column]]
        plain = [row.cells[column] for row in rows if not row.quoted[column]]
        if any('"' in cell for cell in (*plain, header.cells[column])):
            return False
        whole = not any(plain)
        needed = all(not cell or re.search(r'[\t\r\n"]', cell) for cell in quoted)
        if not whole and not needed:
            return False
    return True


def _with_header(records: Iterator[Record], separator: str) -> tuple[Record, list[Record]]:
    """Return the first record and the others, which have as many fields; empty lines at the end are none."""
    header = next(records, None)
    if header is None or header.is_blank:
        raise FormatError(
            "it is empty", hint="let the header be the first line of the file", line=1
        )
    width, rows, blank = len(header.cells), [], None
    for row in records:
        if width > 1 and row.is_blank:
            blank = blank or row
        elif blank or len(row.cells) != width:
            raise _other_width(blank or row, width, separator)
        else:
            rows.append(row)
    return header, rows


def _other_width(row: Record, width: int, separator: str) -> FormatError:
    number = len(row.cells)
    count = "no fields" if row.is_blank else f"{number} field{'' if number == 1 else 's'}"
    return FormatError(
        f"it has {count}, and the header has {width}",
        hint="put texts that hold a comma into quotation marks; repair or remove the line"
        if separator == ","
        else "repair or remove the line: a text may hold a tab only in quotation marks",
        line=row.line,
    )


def _unquoted(text: str, separator: str) -> Iterator[Record]:
    line, position, usual = 1, 0, ""
    while position < len(text):
        end = _ENDS.search(text, position)
        stop = end.start() if end else len(text)
        cells = text[position:stop].split(separator)
        yield Record(cells, (False,) * len(cells), line, line)
        usual = _same_end(usual, end.group() if end else "", line)
        position, line = end.end() if end else stop, line + 1


def _quoted(text: str, separator: str) -> Iterator[Record]:
    field = re.compile(
        rf'(?:"([^"]*+(?:""[^"]*+)*+)"|((?:[^"{separator}\r\n][^{separator}\r\n]*+)?+))({separator}|\r\n|\n|\r|\Z)'
    )
    line, position, usual = 1, 0, ""
    while position < len(text):
        cells: list[str] = []
        quoted: list[bool] = []
        first, end = line, separator
        while end == separator:
            match = field.match(text, position)
            if match is None:
                raise _unclosed(text, position, line)
            inside, plain, end = match.groups()
            cells.append(plain if inside is None else inside.replace('""', '"'))
            quoted.append(inside is not None)
            line += len(_ENDS.findall(inside)) if inside else 0
            position = match.end()
        yield Record(cells, tuple(quoted), first, line)
        usual = _same_end(usual, end, line)
        line += 1


def _same_end(usual: str, end: str, line: int) -> str:
    """Return how lines end."""
    if usual and end and usual != end:
        raise FormatError(
            f"it ends in {_END_NAMES[end]}, and those before in {_END_NAMES[usual]}",
            hint="write the file with one kind of line ends; a text may hold others only in quotation marks",
            line=line,
        )
    return usual or end


def _unclosed(text: str, position: int, line: int) -> FormatError:
    closed = _QUOTED.match(text, position)
    hint = 'close the quotation marks of the field; those inside of a text are doubled ("")'
    if closed is None:
        return FormatError(
            "a field begins with a quotation mark that is never closed", hint=hint, line=line
        )
    rest = _ENDS.split(text[closed.end() : closed.end() + 20], maxsplit=1)[0]
    ends = line + len(_ENDS.findall(closed.group()))
    where = "" if ends == line else f" on line {ends}"
    return FormatError(
        f"a field in quotation marks begins here, and {rest!r} follows its end{where}",
        hint=hint,
        line=line,
    )
