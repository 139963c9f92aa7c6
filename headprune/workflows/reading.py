"""Rows as a file or data set has them: read, turned into examples, and noted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headprune.errors import DataError
from headprune.models.tokenizer import tokenizing
from headprune.runtime.local import published_name
from headprune.tasks.causal_lm import is_chat
from headprune.tasks.columns import Columns, choose_columns
from headprune.tasks.rows import (
    Example,
    prose_without_rows_of,
    read_table,
    with_targets,
    without_rows_of,
)
from headprune.tasks.rows import fingerprint as fingerprint_of_rows
from headprune.tasks.tables import Table
from headprune.workflows.session import Session


@dataclass(frozen=True)
class Rows:
    """Examples, and the facts about them that every artefact records."""

    examples: tuple[Example, ...]
    note: dict[str, Any]

    def part(self, examples: tuple[Example, ...]) -> "Rows":
        """Return some of these examples, with the same facts about where they came from."""
        count, digest = len(examples), fingerprint_of_rows(examples)
        return Rows(examples, {**self.note, "fingerprint": digest, "n": count})


NO_ROWS = Rows((), {})


def without_evaluation_rows(
    session: Session, table: Table, other: Table, columns: Columns, *, name: str = "data"
) -> Table:
    """Return the table without the rows that are in the other table, too, and report how many were left out."""
    if session.task.row.reads_prose:
        free, count = prose_without_rows_of(table, other, column=columns.texts[0])
    else:
        free, count = without_rows_of(table, other, columns=columns.texts)
    if count:
        kind = "calibration rows" if name == "data" else "rows to train on"
        session.progress.notify(f"{count} {kind} are evaluation rows too; left out")
    if count == len(table.rows):
        raise DataError(
            "every row of the data is an evaluation row too, and no row is used for both",
            where=f"`{name}={table.name}`, evaluation data {other.name}",
            hint="report on other rows, or leave `eval_data` out: a part of `data` reports then"
            if name == "data"
            else "name other rows, or leave `heal_data` out: a part of `data` is trained on then",
        )
    return free


def read_rows(
    session: Session, source: str | None, split: str | None, *, labelled: bool = True
) -> tuple[Table, Columns]:
    """Read a file or data set, settle its columns, and report both.

    Raises:
        DataError: No data is named, or it can't be read.
    """
    if source is None:
        raise DataError(
            "no data is named",
            where="`data`",
            hint="name a file (csv, tsv, json, jsonl, parquet, arrow, txt) or a hub id: `data=FILE`",
        )
    data, row = session.settings.data, session.task.row
    table = read_table(source, split=split)
    table = table if data.where is None else table.only(data.where)
    columns = choose_columns(
        table,
        texts=data.text,
        label=data.label if labelled else None,
        num_texts=row.num_texts,
        needs_label=bool(row.label) and labelled,
        names=row.columns,
    )
    label = f", label {columns.label!r}" if columns.label else ""
    shown = " ".join(filter(None, [source, table.split, data.where]))
    read = (*columns.texts, columns.label)
    others = [name for name in table.columns if name not in read]
    unread = f"; not read: {', '.join(map(repr, others[:8]))}{' ...' if len(others) > 8 else ''}"
    chats = row.reads_prose and is_chat(table.rows[0][columns.texts[0]])
    reason = f"{columns.why}{'; chats, through the chat template' if chats else ''}"
    session.progress.notify(
        f"{shown}: {len(table.rows):,} rows, text {', '.join(map(repr, columns.texts))}{label} "
        f"({reason}{unread if others else ''})"
    )
    return table, columns


def examples_of(session: Session, table: Table, columns: Columns) -> tuple[Example, ...]:
    """Return all rows as examples, and report how labels are read; examples without a label have no target."""
    with tokenizing(session.source):
        return session.task.to_examples(
            table, columns, session.input_format(notify=session.progress.notify)
        )


def with_labels_of(
    session: Session, examples: Sequence[Example], columns: Columns
) -> tuple[Example, ...]:
    """Return the examples that have a label, and report how many don't; all examples if no labels are read."""
    labelled = with_targets(examples, column=columns.label) if columns.label else tuple(examples)
    if missing := len(examples) - len(labelled):
        session.progress.notify(
            f"{missing:,} rows have no label in {columns.label!r} (-1, - or nothing); left out"
        )
    return labelled


def noted(session: Session, examples: tuple[Example, ...], table: Table) -> Rows:
    """Return examples with the facts about them that artefacts record."""
    note = {
        "name": published_name(table.name),
        "split": table.split,
        "task": session.task.name,
        "max_length": session.max_length,
        "fingerprint": fingerprint_of_rows(examples),
        "n": len(examples),
    }
    return Rows(examples, note)
