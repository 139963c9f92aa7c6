"""Which rows choose heads, which decide how many to remove, and which report; labels are compared with predictions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from headprune.errors import DataError
from headprune.evaluation import doubts_of, predict
from headprune.runtime.local import count_noted_elsewhere
from headprune.tasks.columns import Columns
from headprune.tasks.rows import (
    Example,
    draw,
    hold_out,
    set_apart,
    without_inputs,
    without_noted,
)
from headprune.tasks.tables import Table
from headprune.workflows.reading import (
    NO_ROWS,
    Rows,
    examples_of,
    noted,
    read_rows,
    with_labels_of,
    without_evaluation_rows,
)
from headprune.workflows.session import Session

TIMES = 5
"""So many times the calibration rows are drawn where some decide how far to go: one part scores, the rest decides."""
_FEWEST_TO_SCORE = 8
_FEW = 256  # rows by which labels are checked against what the model says of them


@dataclass(frozen=True)
class RowParts:
    """Rows by their purpose: no input is in two of ``calibrate``, ``decide`` and ``report``.

    Args:
        calibrate: Rows that choose the heads, or train; divided into ``fit`` and ``held_out``.
        fit: The calibration rows that weights are fitted on.
        held_out: The other calibration rows, which decide whether fitting helped.
        decide: Rows that decide how many heads are removed; empty without ``max_drop``.
        report: Rows that the results are measured on.
        train: Rows to train on, without labels, those first that nothing was fitted on; empty where nothing is trained.
    """

    calibrate: Rows
    fit: tuple[Example, ...]
    held_out: tuple[Example, ...]
    decide: Rows
    report: Rows
    train: Rows = NO_ROWS

    @classmethod
    def of(
        cls, calibrate: Rows, report: Rows, *, decide: Rows | None = None, held_out: float = 0.25
    ) -> "RowParts":
        """Return the parts, the last of the calibration rows held out."""
        fitted = num_fitted(len(calibrate.examples), held_out)
        fit, others = set_apart(calibrate.examples, fitted)
        return cls(calibrate, fit, others, decide or NO_ROWS, report)


@dataclass(frozen=True)
class Purpose:
    """What the rows are needed for.

    Args:
        use: What the calibration rows are for, in words.
        labelled: Whether they need labels.
        decides: Whether deciding rows are separated from them.
        trains: Whether further rows are trained on.
        reports: Whether there are reporting rows.
        held_out: The share of the calibration rows that nothing is fitted on.
    """

    use: str = "choose the heads"
    labelled: bool = True
    decides: bool = False
    trains: bool = False
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
    data = session.settings.data
    used = {*used, *session.used_rows} if purpose.reports else ()
    own_rows = bool(data.eval_data or data.eval_split)
    labelled = purpose.decides or (
        purpose.labelled and session.settings.score.objective != "distill"
    )
    needed = labelled or (purpose.reports and not own_rows)
    table, columns = read_rows(session, data.data, data.split, labelled=needed)
    size = min(session.settings.score.num_samples, data.limit or session.settings.score.num_samples)
    count = size * (TIMES if purpose.decides else 1)
    other, other_columns = table, columns
    if own_rows:
        other, other_columns = read_rows(session, *data.evaluation_source, labelled=purpose.reports)
        if columns.texts == other_columns.texts:
            table = without_evaluation_rows(session, table, other, columns)
    candidates = examples_of(session, table, columns)
    with_labels = with_labels_of(session, candidates, columns) if needed else ()
    drawn = with_labels if labelled else tuple(replace(one, target=None) for one in candidates)
    if own_rows:
        choosing = draw(drawn, count, seed=data.seed)
        examples = examples_of(session, other, other_columns)
        reporting = with_labels_of(session, examples, other_columns)
    else:
        choosing, reporting = hold_out(drawn, count=count, seed=data.seed)
        reporting = reporting if labelled or not purpose.reports else with_labels
    reporting = without_inputs(reporting, [example.input_digest for example in choosing])
    if not own_rows:
        reporting = _others_report(session, purpose, choosing, reporting)
    left = _without_used(session, reporting, used)
    if not choosing or len(left) < 2:
        raise _too_few(len(choosing), len(left), purpose, data.data)
    chosen = _doubted(session, noted(session, choosing, table))
    report = noted(session, draw(left, data.limit, seed=data.seed), other)
    if purpose.reports and (own_rows or not labelled):
        report = _doubted(session, report)
    else:
        report = replace(report, note={**report.note, "warnings": chosen.note["warnings"]})
    apart = _set_deciding_apart(session, chosen, size, used) if purpose.decides else None
    calibrate, decide = apart or (chosen, None)
    parts = RowParts.of(calibrate, report, decide=decide, held_out=purpose.held_out)
    if purpose.trains:
        taken, tables = (*choosing, *reporting), (table, other, other_columns)
        parts = replace(parts, train=_rows_to_train_on(session, parts, candidates, taken, tables))
    return parts


def _others_report(
    session: Session, purpose: Purpose, choosing: Sequence[Example], others: tuple[Example, ...]
) -> tuple[Example, ...]:
    """Return those of the other rows that report: all, or half of them where the rest is trained on; and report both numbers."""
    halves = purpose.trains and session.settings.distill.heal_data is None
    count = -(-len(others) // 2) if halves else len(others)
    reporting = draw(others, count, seed=session.settings.data.seed) if halves else others
    session.progress.notify(
        f"no separate evaluation rows: {len(choosing):,} rows {purpose.use}, {count:,} others report"
        + (f", {len(others) - count:,} are trained on" if halves else "")
    )
    return reporting


def _too_few(choosing: int, reporting: int, purpose: Purpose, data: str | None) -> DataError:
    return DataError(
        f"{choosing} rows are left to {purpose.use} and {reporting} to report on",
        where=f"`data={data}`",
        hint="give more rows, or `eval_data` with other rows than `data`",
    )


def _rows_to_train_on(
    session: Session,
    parts: RowParts,
    candidates: Sequence[Example],
    taken: Sequence[Example],
    tables: tuple[Table, Table, Columns],
) -> Rows:
    """Return the rows of ``heal_data``, or those of the data that do nothing else and then those that weights are fitted on.

    Args:
        session: The model, with its settings.
        parts: The rows by their other purposes.
        candidates: All rows of the data.
        taken: Rows that choose, decide or report.
        tables: The data, and what reports with its columns.
    """
    spec, (table, other, columns) = session.settings.distill, tables
    fresh, fitted = candidates, parts.fit
    if spec.heal_data is not None:
        table, own_columns = read_rows(session, spec.heal_data, spec.heal_split, labelled=False)
        if own_columns.texts == columns.texts:
            table = without_evaluation_rows(session, table, other, own_columns, name="heal_data")
        fresh, fitted = examples_of(session, table, own_columns), ()
    digests = [example.input_digest for example in taken]
    fresh = draw(without_inputs(fresh, digests), len(fresh), seed=session.settings.data.seed)
    unlabelled = (replace(example, target=None) for example in (*fresh, *fitted))
    return noted(session, tuple(unlabelled), table)


def num_fitted(count: int, held_out: float) -> int:
    """Return how many of ``count`` calibration rows weights are fitted on, if a share is held out."""
    return count - max(2, round(held_out * count))


def _set_deciding_apart(
    session: Session, drawn: Rows, size: int, used: Collection[str]
) -> tuple[Rows, Rows]:
    """Divide the drawn rows into scoring rows and deciding rows, and report their numbers."""
    count = min(size, max(_FEWEST_TO_SCORE, len(drawn.examples) // 3))
    scoring, others = set_apart(drawn.examples, count)
    parts = [drawn.part(scoring), drawn.part(without_noted(others, used))]
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
    table, columns = read_rows(session, data.data, data.split, labelled=False)
    return noted(session, draw(examples_of(session, table, columns), count, seed=data.seed), table)


def evaluation_rows(session: Session) -> Rows:
    """Return the rows of ``eval`` and ``check``: all of the evaluation data, or of the data where there is no other."""
    data = session.settings.data
    table, columns = read_rows(session, *data.evaluation_source)
    labelled = with_labels_of(session, examples_of(session, table, columns), columns)
    examples = draw(labelled, data.limit, seed=data.seed)
    _warn_of_unknown(session, session.used_rows)
    seen = len(examples) - len(without_noted(examples, session.used_rows))
    if seen:
        session.progress.notify(
            f"careful: {seen} of these {len(examples)} rows chose the heads of this model"
        )
    return noted(session, examples, table)


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
