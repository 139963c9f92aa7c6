"""Which rows choose heads, which decide how many to remove, and which report; labels are compared with predictions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headprune.errors import DataError
from headprune.evaluation import doubts_of, predict
from headprune.runtime.local import count_noted_elsewhere, published_name
from headprune.tasks.causal_lm import is_chat
from headprune.tasks.columns import Columns, choose_columns
from headprune.tasks.rows import (
    Example,
    draw,
    hold_out,
    prose_without_rows_of,
    read_table,
    set_apart,
    with_targets,
    without_inputs,
    without_noted,
    without_rows_of,
)
from headprune.tasks.rows import fingerprint as fingerprint_of_rows
from headprune.tasks.tables import Table
from headprune.workflows.session import Session, tokenizing

TIMES = 5
"""So many times the calibration rows are drawn where some decide how far to go: one part scores, the rest decides."""
_FEWEST_TO_SCORE = 8
_FEW = 256  # rows by which labels are checked against what the model says of them


@dataclass(frozen=True)
class Rows:
    """Examples, and the facts about them that every artefact records."""

    examples: tuple[Example, ...]
    note: dict[str, Any]


@dataclass(frozen=True)
class RowParts:
    """Rows by their purpose: no input is in two of ``calibrate``, ``decide`` and ``report``.

    Args:
        calibrate: Rows that choose the heads, or train; divided into ``fit`` and ``held_out``.
        fit: The calibration rows that weights are fitted on.
        held_out: The other calibration rows, which decide whether fitting helped.
        decide: Rows that decide how many heads are removed; empty without ``max_drop``.
        report: Rows that the results are measured on.
    """

    calibrate: Rows
    fit: tuple[Example, ...]
    held_out: tuple[Example, ...]
    decide: Rows
    report: Rows

    @classmethod
    def of(
        cls, calibrate: Rows, report: Rows, *, decide: Rows | None = None, held_out: float = 0.25
    ) -> "RowParts":
        """Return the parts, the last of the calibration rows held out."""
        fitted = num_fitted(len(calibrate.examples), held_out)
        fit, others = set_apart(calibrate.examples, fitted)
        return cls(calibrate, fit, others, decide or Rows((), {}), report)


@dataclass(frozen=True)
class Purpose:
    """What the rows are needed for.

    Args:
        use: What the calibration rows are for, in words.
        labelled: Whether they need labels.
        decides: Whether deciding rows are separated from them.
        reports: Whether there are reporting rows.
        held_out: The share of the calibration rows that nothing is fitted on.
    """

    use: str = "choose the heads"
    labelled: bool = True
    decides: bool = False
    reports: bool = True
    held_out: float = 0.25


def separate_rows(
    session: Session, purpose: Purpose = Purpose(), *, used: Collection[str] = ()
) -> RowParts:
    """Return rows by their purpose.

    Args:
        session: The model, with its settings.
        purpose: What the rows are needed for.
        used: Hashes of inputs that chose heads before, in addition to the model's own: these inputs neither decide nor report.

    Raises:
        DataError: Too few rows remain for a purpose.
    """
    data, notify = session.settings.data, session.progress.notify
    used = {*used, *session.used_rows} if purpose.reports else ()
    own_rows = bool(data.eval_data or data.eval_split)
    labelled = purpose.decides or (
        purpose.labelled and session.settings.score.objective != "distill"
    )
    needed = labelled or (purpose.reports and not own_rows)
    table, columns = _read(session, data.data, data.split, labelled=needed)
    size = min(session.settings.score.num_samples, data.limit or session.settings.score.num_samples)
    count = size * (TIMES if purpose.decides else 1)
    other, other_columns = table, columns
    if own_rows:
        other, other_columns = _read(session, *data.evaluation_source, labelled=purpose.reports)
        if columns.texts == other_columns.texts:
            table = _without(session, table, other, columns)
    candidates = _examples(session, table, columns)
    with_labels = _labelled(session, candidates, columns) if needed else ()
    drawn = with_labels if labelled else tuple(replace(one, target=None) for one in candidates)
    if own_rows:
        choosing = draw(drawn, count, seed=data.seed)
        examples = _examples(session, other, other_columns)
        reporting = _labelled(session, examples, other_columns)
    else:
        choosing, reporting = hold_out(drawn, count=count, seed=data.seed)
        reporting = reporting if labelled or not purpose.reports else with_labels
    reporting = without_inputs(reporting, [example.input_digest for example in choosing])
    if not own_rows:
        notify(
            f"no separate evaluation rows: {len(choosing):,} rows {purpose.use}, the other {len(reporting):,} report"
        )
    left = _without_used(session, reporting, used)
    if not choosing or len(left) < 2:
        raise DataError(
            f"{len(choosing)} rows are left to {purpose.use} and {len(left)} to report on",
            where=f"`data={data.data}`",
            hint="give more rows, or `eval_data` with other rows than `data`",
        )
    chosen = _doubted(session, _noted(session, choosing, table))
    report = _noted(session, draw(left, data.limit, seed=data.seed), other)
    if purpose.reports and (own_rows or not labelled):
        report = _doubted(session, report)
    else:
        report = replace(report, note={**report.note, "warnings": chosen.note["warnings"]})
    calibrate, decide = chosen, None
    if purpose.decides:
        calibrate, decide = _set_deciding_apart(session, chosen, size, used)
    return RowParts.of(calibrate, report, decide=decide, held_out=purpose.held_out)


def num_fitted(count: int, held_out: float) -> int:
    """Return how many of ``count`` calibration rows weights are fitted on, if a share is held out."""
    return count - max(2, round(held_out * count))


def _set_deciding_apart(
    session: Session, drawn: Rows, size: int, used: Collection[str]
) -> tuple[Rows, Rows]:
    """Divide the drawn rows into scoring rows and deciding rows, and report their numbers."""
    count = min(size, max(_FEWEST_TO_SCORE, len(drawn.examples) // 3))
    scoring, others = set_apart(drawn.examples, count)
    parts = [
        Rows(part, {**drawn.note, "fingerprint": fingerprint_of_rows(part), "n": len(part)})
        for part in (scoring, without_noted(others, used))
    ]
    scores, decides = (len(part.examples) for part in parts)
    if decides < 2:
        raise DataError(
            f"{scores} rows score, and {decides} are left to decide how far to go",
            where=f"`max_drop={session.settings.plan.max_drop}`",
            hint="give more rows, or a budget that needs none that decide: `keep=0.7`",
        )
    session.progress.notify(f"{scores:,} rows score, {decides:,} decide how far to go")
    return parts[0], parts[1]


def rows_without_labels(session: Session, count: int) -> Rows:
    """Return at most ``count`` rows that are only looked at: no label is read, and none reports."""
    data = session.settings.data
    table, columns = _read(session, data.data, data.split, labelled=False)
    return _noted(session, draw(_examples(session, table, columns), count, seed=data.seed), table)


def evaluation_rows(session: Session) -> Rows:
    """Return the rows of ``eval`` and ``check``: all of the evaluation data, or of the data where there is no other."""
    data = session.settings.data
    table, columns = _read(session, *data.evaluation_source)
    labelled = _labelled(session, _examples(session, table, columns), columns)
    examples = draw(labelled, data.limit, seed=data.seed)
    _warn_of_unknown(session, session.used_rows)
    seen = len(examples) - len(without_noted(examples, session.used_rows))
    if seen:
        session.progress.notify(
            f"careful: {seen} of these {len(examples)} rows chose the heads of this model"
        )
    return _noted(session, examples, table)


def _without_used(
    session: Session, reporting: Sequence[Example], used: Collection[str]
) -> tuple[Example, ...]:
    """Return the rows that chose no heads before; report how many did, and for how many it is unknown."""
    _warn_of_unknown(session, used)
    left = without_noted(reporting, used)
    if len(left) < len(reporting):
        session.progress.notify(
            f"{len(reporting) - len(left)} evaluation rows chose heads before; left out"
        )
    return left


def _without(session: Session, table: Table, other: Table, columns: Columns) -> Table:
    """Return the table without the rows that are in the other table, too, and report how many were left out."""
    if session.task.row.reads_prose:
        free, count = prose_without_rows_of(table, other, column=columns.texts[0])
    else:
        free, count = without_rows_of(table, other, columns=columns.texts)
    if count:
        session.progress.notify(f"{count} calibration rows are evaluation rows too; left out")
    if count == len(table.rows):
        raise DataError(
            "every row of the data is an evaluation row too, and no row is used for both",
            where=f"`data={table.name}`, evaluation data {other.name}",
            hint="report on other rows, or leave `eval_data` out: a part of `data` reports then",
        )
    return free


def _doubted(session: Session, rows: Rows) -> Rows:
    """Return the rows with warnings about labels that the model's predictions contradict, and report the warnings."""
    some = [example for example in rows.examples if example.target is not None][:_FEW]
    doubts: tuple[str, ...] = ()
    if some and session.task.row.label:
        predictions = predict(session.model, session.task, batches=session.batches(some))
        doubts = doubts_of(predictions, session.task, session.model.config)
    for doubt in doubts:
        session.progress.notify(f"careful: {rows.note['name']}: {doubt}")
    return replace(rows, note={**rows.note, "warnings": list(doubts)})


def _warn_of_unknown(session: Session, used: Collection[str]) -> None:
    """Warn that rows that chose heads may report, if this machine can't recognise their hashes."""
    unknown = count_noted_elsewhere(used)
    if unknown:
        session.progress.notify(
            f"careful: {unknown:,} rows that chose heads before were noted on another machine, or by another version: "
            "whether they report can't be told here"
        )


def _read(
    session: Session, source: str | None, split: str | None, *, labelled: bool = True
) -> tuple[Table, Columns]:
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


def _examples(session: Session, table: Table, columns: Columns) -> tuple[Example, ...]:
    """Return all rows as examples, and report how labels are read; examples without a label have no target."""
    with tokenizing(session.source):
        return session.task.to_examples(
            table, columns, session.input_format(notify=session.progress.notify)
        )


def _labelled(
    session: Session, examples: Sequence[Example], columns: Columns
) -> tuple[Example, ...]:
    """Return the examples that have a label, and report how many don't; all examples if no labels are read."""
    labelled = with_targets(examples, column=columns.label) if columns.label else tuple(examples)
    if missing := len(examples) - len(labelled):
        session.progress.notify(
            f"{missing:,} rows have no label in {columns.label!r} (-1, - or nothing); left out"
        )
    return labelled


def _noted(session: Session, examples: tuple[Example, ...], table: Table) -> Rows:
    note = {
        "name": published_name(table.name),
        "split": table.split,
        "task": session.task.name,
        "max_length": session.max_length,
        "fingerprint": fingerprint_of_rows(examples),
        "n": len(examples),
    }
    return Rows(examples, note)
