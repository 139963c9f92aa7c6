"""What is measured, and how much of it. Imports nothing large: the process that starts the memory runs must stay small."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import command

SUBJECTS = ("bert-base", "minilm", "smollm2")


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        rows: Examples of each subject: rows of BERT, pairs of sentences of MiniLM, windows of SmolLM2.
        bert: The random BERT's layers, heads, width and feed-forward width.
        bert_batch: Its rows per batch.
        bert_length: Its tokens per row.
        window: SmolLM2's tokens per row.
        reference_rows: Examples that the reference runs at most; the rest is extrapolated.
        padding: Tokens to which the reference pads every row.
        tiny: Whether tiny random models stand in for MiniLM and SmolLM2.
    """

    rows: Mapping[str, int]
    bert: tuple[int, int, int, int] = (12, 12, 768, 3072)
    bert_batch: int = 16
    bert_length: int = 32
    window: int = 128
    reference_rows: int = 32
    padding: int = 128
    tiny: bool = False


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Args:
        repeats: Turns that every method gets; the quickest counts.
        heads: Heads that the naive loop runs; the rest is extrapolated.
        reference_heads: Heads that the reference runs; the rest is extrapolated.
        linear_rows: The smallest of the three row counts of the linear part.
        linear_lengths: Its three token lengths.
        memory_rows: Rows of the smaller memory run.
        memory_turns: How often memory is measured; the middle counts.
        memory_apart: Whether a process measures one thing alone; else all of them, whose peaks then never fall.
        products: ``(rows, inner, columns)`` of the matrix products that tell the machine's peak.
    """

    repeats: int
    heads: int
    reference_heads: int
    linear_rows: int
    linear_lengths: tuple[int, int, int]
    memory_rows: int
    memory_turns: int = 3
    memory_apart: bool = True
    products: tuple[tuple[int, int, int], ...] = (
        (4096, 768, 3072),
        (4096, 3072, 768),
        (1024, 768, 3072),
        (2048, 2048, 2048),
    )


@dataclass(frozen=True)
class Request:
    """Everything that was asked for."""

    subjects: tuple[str, ...]
    sizes: Sizes
    effort: Effort
    device: str
    memory_subject: str
    json: Path | None
    profile: bool
    quick: bool


FULL = Sizes({"bert-base": 48, "minilm": 128, "smollm2": 4})
# A GPU needs more rows to be busy, and has the time.
GPU_ROWS = {"bert-base": 512, "minilm": 4096, "smollm2": 64}
FULL_EFFORT = Effort(2, 12, 2, linear_rows=8, linear_lengths=(16, 32, 64), memory_rows=128)
QUICK = Sizes(
    {"bert-base": 8, "minilm": 4, "smollm2": 2},
    bert=(2, 2, 32, 64),
    bert_batch=4,
    bert_length=16,
    window=4,
    reference_rows=2,
    padding=16,
    tiny=True,
)
QUICK_EFFORT = Effort(
    *(1, 2, 1),
    linear_rows=2,
    linear_lengths=(4, 8, 16),
    memory_rows=8,
    memory_turns=1,
    memory_apart=False,
    products=((128, 128, 128),),
)


def read(words: Sequence[str] | None = None) -> Request:
    """Read the command line."""
    parser = _parser()
    said = command.read(parser, words)
    sizes, effort = (QUICK, QUICK_EFFORT) if said.quick else (FULL, FULL_EFFORT)
    if said.device.startswith("cuda") and not said.quick:
        sizes = replace(sizes, rows=GPU_ROWS)
    rows = {**sizes.rows, **_rows(said.rows, parser)}
    sizes = _changed(
        sizes,
        rows=rows,
        bert=said.bert_size,
        bert_batch=said.bert_batch,
        bert_length=said.bert_length,
        window=said.window,
        reference_rows=said.reference_rows,
    )
    effort = _changed(
        effort,
        repeats=said.repeats,
        heads=said.heads,
        reference_heads=said.reference_heads,
    )
    return Request(
        subjects=tuple(dict.fromkeys(said.subject or SUBJECTS)),
        sizes=sizes,
        effort=replace(effort, reference_heads=min(effort.reference_heads, effort.heads)),
        device=said.device,
        memory_subject=said.memory_subject,
        json=said.json,
        profile=said.profile,
        quick=said.quick,
    )


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(
        "speed",
        "Measure exact leave-one-out ablation, side by side.",
        quick="tiny random models, one turn, no target counts",
    )
    command.add_files(parser)
    add = parser.add_argument
    add("--subject", action="append", choices=SUBJECTS, help="again for several; default: all")
    add("--rows", action="append", default=[], help="N, or SUBJECT=N for one subject")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add("--repeats", type=positive_number, help="turns of every method; the quickest counts")
    add("--heads", type=positive_number, help="heads that the naive loop runs (ours runs all)")
    add("--reference-heads", type=positive_number, help="heads that the reference runs, of those")
    add("--reference-rows", type=positive_number, help="examples that the reference runs")
    add("--bert-size", type=four_numbers, help="LAYERS,HEADS,WIDTH,FEED_FORWARD of the random BERT")
    add("--bert-batch", type=positive_number, help="its rows per batch")
    add("--bert-length", type=positive_number, help="its tokens per row")
    add("--window", type=token_count, help="SmolLM2's tokens per row")
    add("--memory-subject", choices=("minilm", "bert-base"), default="minilm")
    add("--profile", action="store_true", help="profile one batch of each subject, too")
    return parser


def _changed(value: Any, **said: object) -> Any:
    return replace(value, **{name: new for name, new in said.items() if new is not None})


def _rows(said: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in said:
        name, _, number = item.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or (name and name not in SUBJECTS):
            _refuse(parser, item)
        found |= dict.fromkeys([name] if name else SUBJECTS, int(number))
    return found


def _refuse(parser: argparse.ArgumentParser, item: str) -> NoReturn:
    parser.error(f"--rows takes N or SUBJECT=N (subjects: {', '.join(SUBJECTS)}), not {item!r}")


def positive_number(text: str) -> int:
    """Read a number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def token_count(text: str) -> int:
    """Read a number of at least 2: a prediction needs two tokens."""
    number = int(text)
    if number < 2:
        raise ValueError
    return number


def four_numbers(text: str) -> tuple[int, int, int, int]:
    """Read ``LAYERS,HEADS,WIDTH,FEED_FORWARD``."""
    layers, heads, width, inner = map(positive_number, text.split(","))
    if width % heads:
        raise ValueError
    return layers, heads, width, inner
