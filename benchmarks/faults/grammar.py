"""Inputs that are nearly right: JSON, YAML, tables and words of a command line, made from right ones by rules."""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**4, 10**9, 2**31, 2**63, -(2**63), 10**30),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), 1e-320),
    *("", " ", "x", "0", "none", "../../etc", "a" * 300, "\u0000", "\ud800", "[red]x[/]", "é" * 9),
    *([], {}, [[]], [None], [1, "a"], {"a": {}}, {"": 0}, ["L0.H0", 5]),
)
_TOKENS = (
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "'",
    "\\",
    "\n",
    "\t",
    "\x00",
    "- ",
    "&a ",
    "*a",
    "!!python/name:os.system ",
    "? ",
    "|",
    ">",
    "%",
    "@",
    "#",
    "é",
    "\ufeff",
    "0x1f",
    "1e999",
    "-",
    "NaN",
    "null",
    "~",
)
_CELLS = (
    "",
    '"',
    '""',
    "a,b",
    "\n",
    "\x00",
    "NA",
    "None",
    "1e999",
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "é",
    "\ufeff",
    "x" * 5000,
    "=1+1",
    "[1]",
    "{}",
    "true",
    "w1 w2",
)


def mutated_json(text: str, draw: Random, *, times: int = 0) -> str:
    """Return a JSON document with some of its values, keys or characters replaced."""
    if draw.random() < 0.2:
        return mutated_text(text, draw)
    document = json.loads(text)
    for _ in range(times or draw.choice((1, 1, 1, 2, 3))):
        document = _changed(document, draw)
    text = json.dumps(document, ensure_ascii=True)
    if draw.random() < 0.05:
        text = _deep(draw)
    return text


def _changed(value: Any, draw: Random) -> Any:
    """Change one thing, somewhere in a value."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        way = draw.random()
        if way < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.25:
            return {
                **value,
                draw.choice(("", "x", key.upper(), f"{key} ", "format")): draw.choice(NASTY),
            }
        if way < 0.3:
            return {(f"{k}_" if k == key else k): v for k, v in value.items()}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.6:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return [*value[:place], *value[place + 1 :]]
        return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    return draw.choice(NASTY)


def _deep(draw: Random) -> str:
    depth = draw.choice((100, 1000, 5000, 100000))
    return draw.choice(('{"a":' * depth + "1" + "}" * depth, "[" * depth + "]" * depth))


def mutated_text(text: str, draw: Random) -> str:
    """Return a text with tokens put in, stretches removed, doubled or swapped."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((1, 2, 8, 40)))
        way = draw.randrange(4)
        middle = ("", draw.choice(_TOKENS), text[start:end] * 2, text[start:end][::-1])[way]
        text = text[:start] + middle + text[end if way != 1 else start :]
    return text


def mutated_yaml(names: Sequence[str], draw: Random) -> str:
    """Return a file of settings: known and unknown names, with values of all kinds."""
    lines = []
    for _ in range(draw.randint(1, 4)):
        name = draw.choice(names) if draw.random() < 0.9 else draw.choice(("keeep", "", "[", "a b"))
        value = draw.choice(NASTY)
        shown = json.dumps(value) if draw.random() < 0.7 else str(value)
        lines.append(f"{name}: {shown}")
    text = "\n".join(lines) + "\n"
    way = draw.random()
    if way < 0.25:
        return mutated_text(text, draw)
    if way < 0.3:
        return "model: " + _deep(draw)
    if way < 0.33:
        return "a: &a [x, x]\n" + "".join(
            f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *{'a' if n == 0 else f'b{n - 1}'}]\n"
            for n in range(24)
        )
    return text


def mutated_table(draw: Random, *, separator: str) -> bytes:
    """Return rows with cells, quotes, separators, columns and bytes that don't belong there."""
    header = draw.choice(
        ("text,label", "text,label", "text,label", "label,text", "text", "text,text", "a,b,c", "")
    )
    rows = [header.replace(",", separator)]
    for _ in range(draw.choice((0, 1, 3, 8))):
        cells = [draw.choice((*_CELLS, "w1 w2 w3", "w4 w5")), draw.choice((*_CELLS, "0", "1", "1"))]
        if draw.random() < 0.1:
            cells *= 2
        quoted = draw.random() < 0.3
        rows.append(
            separator.join('"' + c.replace('"', '""') + '"' if quoted else c for c in cells)
        )
    return _as_bytes("\n".join(rows) + "\n", draw)


def mutated_lines(draw: Random) -> bytes:
    """Return JSON lines: objects of all kinds, and what isn't one."""
    lines = []
    for _ in range(draw.choice((0, 1, 3, 8))):
        row: Any = {"text": draw.choice(("w1 w2", *NASTY)), "label": draw.choice((0, 1, *NASTY))}
        if draw.random() < 0.1:
            row = draw.choice(NASTY)
        line = json.dumps(row)
        lines.append(mutated_text(line, draw) if draw.random() < 0.1 else line)
    return _as_bytes("\n".join(lines) + "\n", draw)


def _as_bytes(text: str, draw: Random) -> bytes:
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "latin-1", "utf-16"))
    content = text.encode(encoding, errors="replace")
    if draw.random() < 0.1:
        place = draw.randrange(len(content) + 1)
        content = content[:place] + bytes([draw.randrange(256)]) + content[place:]
    return content


def mutated_words(options: Sequence[str], draw: Random, *, choose: Callable[[], str]) -> list[str]:
    """Return options of a command, each with a value of any kind or none; ``choose`` makes values that may be right."""
    words: list[str] = []
    for _ in range(draw.randint(1, 4)):
        words.append(
            draw.choice(options)
            if draw.random() < 0.95
            else draw.choice(("--", "-", "--no-such", "--keep="))
        )
        if draw.random() < 0.8:
            value = choose() if draw.random() < 0.4 else str(draw.choice(NASTY))
            words.append(value.replace("\x00", "").encode(errors="ignore").decode())
    return words
