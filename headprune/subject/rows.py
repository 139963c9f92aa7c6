"""Which rows choose heads, and which report; their labels looked at by what the model says of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headprune.anatomy.clone import pruning_record
from headprune.artefact import read_artefact
from headprune.config import Recipe
from headprune.errors import DataError
from headprune.evaluation import doubts_of, predict
from headprune.plans import HeadScores
from headprune.results import Results
from headprune.runtime.local import count_noted_elsewhere, published_name
from headprune.subject.opened import Progress, Subject, tokenizing
from headprune.tasks.causal_lm import is_chat
from headprune.tasks.columns import Columns, choose_columns
from headprune.tasks.data import read_table
from headprune.tasks.rows import (
    Example,
    draw,
    hold_out,
    prose_without_rows_of,
    with_targets,
    without_inputs,
    without_noted,
    without_rows_of,
)
from headprune.tasks.rows import fingerprint as fingerprint_of_rows
from headprune.tasks.tables import Table

_FEW = 256
"""Rows by which labels are checked against what the model says of them."""


@dataclass(frozen=True)
class Rows:
    """Examples, and what is noted of them in every artefact."""

    examples: tuple[Example, ...]
    note: dict[str, Any]


def calibration_rows(subject: Subject, *, progress: Progress) -> Rows:
    """Return the rows that choose the heads."""
    return separate_rows(subject, progress=progress, reports=False)[0]


def evaluation_rows(subject: Subject, *, progress: Progress) -> Rows:
    """Return the rows of ``eval`` and ``check``: all of the evaluation data, or of the data where there is no other."""
    table, columns = _read(subject, *evaluation_source(subject.recipe), progress=progress)
    found = _labelled(
        _examples(subject, table, columns, progress=progress), columns, progress=progress
    )
    examples = draw(found, subject.recipe.limit, seed=subject.recipe.seed)
    chose = rows_that_chose(subject)
    seen = len(examples) - len(without_noted(examples, chose))
    _say_what_cannot_be_told(chose, progress=progress)
    if seen:
        progress.notify(
            f"careful: {seen} of these {len(examples)} rows chose the heads of this model"
        )
    return _noted(subject, examples, table)


def rows_that_chose(subject: Subject) -> tuple[str, ...]:
    """Return the hashes of the inputs that chose the heads of a model pruned before, or that it was trained on since."""
    directory = subject.source.directory
    if not pruning_record(subject.model.config):
        return ()
    found: set[str] = set()
    if (path := directory / "scores.json").is_file():
        found |= set(read_artefact(HeadScores, path).rows)
    if (path := directory / "results.json").is_file():
        healed = read_artefact(Results, path).heal
        found |= set(healed.rows if healed else ())
    return tuple(sorted(found))


def separate_rows(
    subject: Subject,
    *,
    progress: Progress,
    chose: Collection[str] = (),
    use: str = "choose the heads",
    labelled: bool = True,
    times: int = 1,
    reports: bool = True,
) -> tuple[Rows, Rows]:
    """Return rows that choose and rows that report: no input is in both.

    Args:
        subject: The model, with its recipe.
        progress: How to talk meanwhile.
        chose: Hashes of inputs that chose heads before; they don't report.
        use: What the rows that don't report are for.
        times: How many times as many of those as the recipe says; some of them decide by the metric then.
        labelled: Whether labels are read with those.
        reports: Whether the others will report: then they need their labels.

    Raises:
        DataError: Too few rows are left on a side.
    """
    recipe = subject.recipe
    own_rows = bool(recipe.eval_data or recipe.eval_split)
    labelled = (labelled and recipe.objective != "distill") or times > 1
    needed = labelled or (reports and not own_rows)
    table, columns = _read(subject, recipe.data, recipe.split, progress=progress, labelled=needed)
    count = times * min(recipe.num_samples, recipe.limit or recipe.num_samples)
    other, other_columns = table, columns
    if own_rows:
        source = evaluation_source(recipe)
        other, other_columns = _read(subject, *source, progress=progress, labelled=reports)
        if columns.texts == other_columns.texts:
            table = _without(subject, table, other, columns, progress=progress)
    candidates = _examples(subject, table, columns, progress=progress)
    with_labels = _labelled(candidates, columns, progress=progress) if needed else ()
    drawn = with_labels if labelled else tuple(replace(one, target=None) for one in candidates)
    if own_rows:
        choosing = draw(drawn, count, seed=recipe.seed)
        examples = _examples(subject, other, other_columns, progress=progress)
        reporting = _labelled(examples, other_columns, progress=progress)
    else:
        choosing, reporting = hold_out(drawn, count=count, seed=recipe.seed)
        reporting = reporting if labelled or not reports else with_labels
    reporting = without_inputs(reporting, [example.input_digest for example in choosing])
    if not own_rows:
        progress.notify(
            f"no --eval-data: {len(choosing):,} rows {use}, the other {len(reporting):,} report"
        )
    left = _without_those_that_chose(reporting, chose, progress=progress)
    if not choosing or len(left) < 2:
        raise DataError(
            f"{len(choosing)} rows are left to {use} and {len(left)} to report on",
            where=f"--data {recipe.data}",
            hint="give more rows, or --eval-data with other rows than --data",
        )
    chosen = _doubted(subject, _noted(subject, choosing, table), progress=progress)
    report = _noted(subject, draw(left, recipe.limit, seed=recipe.seed), other)
    if reports and (own_rows or not labelled):
        return chosen, _doubted(subject, report, progress=progress)
    return chosen, replace(report, note={**report.note, "warnings": chosen.note["warnings"]})


def _without_those_that_chose(
    reporting: Sequence[Example], chose: Collection[str], *, progress: Progress
) -> tuple[Example, ...]:
    """Return the rows that chose no heads before, and say how many did, and how many can't be told."""
    _say_what_cannot_be_told(chose, progress=progress)
    left = without_noted(reporting, chose)
    if len(left) < len(reporting):
        progress.notify(
            f"{len(reporting) - len(left)} evaluation rows chose heads before; left out"
        )
    return left


def _without(
    subject: Subject, table: Table, other: Table, columns: Columns, *, progress: Progress
) -> Table:
    """Return the table without the rows that stand in the other one as well, and say how many they are.

    Raises:
        DataError: All do.
    """
    if subject.task.row.reads_prose:
        free, count = prose_without_rows_of(table, other, column=columns.texts[0])
    else:
        free, count = without_rows_of(table, other, columns=columns.texts)
    if count:
        progress.notify(f"{count} calibration rows are evaluation rows too; left out")
    if count == len(table.rows):
        raise DataError(
            "every row of the data is an evaluation row too, and no row is used for both",
            where=f"--data {table.name}, evaluation data {other.name}",
            hint="report on other rows, or leave --eval-data out: a part of --data reports then",
        )
    return free


def _doubted(subject: Subject, rows: Rows, *, progress: Progress) -> Rows:
    """Return the rows with what the model's own predictions make doubtful of their labels, and say it."""
    some = [example for example in rows.examples if example.target is not None][:_FEW]
    found: tuple[str, ...] = ()
    if some and subject.task.row.label:
        said = predict(subject.model, subject.task, batches=subject.batches(some))
        found = doubts_of(said, subject.task, subject.model.config)
    for doubt in found:
        progress.notify(f"careful: {rows.note['name']}: {doubt}")
    return replace(rows, note={**rows.note, "warnings": list(found)})


def _say_what_cannot_be_told(chose: Collection[str], *, progress: Progress) -> None:
    """Say that some rows that chose heads may report, where nobody here can recognise them."""
    unknown = count_noted_elsewhere(chose)
    if unknown:
        progress.notify(
            f"careful: {unknown:,} rows that chose heads before were noted on another machine, or by another version: "
            "whether they report can't be told here"
        )


def evaluation_source(recipe: Recipe) -> tuple[str | None, str | None]:
    """Return where the rows that report come from: data and split."""
    if recipe.eval_data:
        return recipe.eval_data, recipe.eval_split
    return recipe.data, recipe.eval_split or recipe.split


def _read(
    subject: Subject,
    source: str | None,
    split: str | None,
    *,
    progress: Progress,
    labelled: bool = True,
) -> tuple[Table, Columns]:
    if source is None:
        raise DataError(
            "no data is named",
            where="--data",
            hint="say --data FILE (csv, tsv, json, jsonl, parquet, arrow, txt) or --data HUB_ID",
        )
    recipe, task = subject.recipe, subject.task
    table = read_table(source, split=split)
    columns = choose_columns(
        table,
        texts=recipe.text,
        label=recipe.label if labelled else None,
        num_texts=task.row.num_texts,
        needs_label=bool(task.row.label) and labelled,
        names=task.row.columns,
    )
    label = f", label {columns.label!r}" if columns.label else ""
    shown = f"{source} {table.split}" if table.split else source
    read = (*columns.texts, columns.label)
    others = [name for name in table.columns if name not in read]
    unread = f"; not read: {', '.join(map(repr, others[:8]))}{' ...' if len(others) > 8 else ''}"
    chats = task.row.reads_prose and is_chat(table.rows[0][columns.texts[0]])
    why = f"{columns.why}{'; chats, through the chat template' if chats else ''}"
    progress.notify(
        f"{shown}: {len(table.rows):,} rows, text {', '.join(map(repr, columns.texts))}{label} "
        f"({why}{unread if others else ''})"
    )
    return table, columns


def _examples(
    subject: Subject, table: Table, columns: Columns, *, progress: Progress
) -> tuple[Example, ...]:
    """Return all rows as examples, and say how their labels are read; those that have none have no target."""
    with tokenizing(subject.source):
        return subject.task.to_examples(
            table, columns, subject.input_format(notify=progress.notify)
        )


def _labelled(
    examples: Sequence[Example], columns: Columns, *, progress: Progress
) -> tuple[Example, ...]:
    """Return the examples that have a label, and say how many have none; all of them where no label is read."""
    found = with_targets(examples, column=columns.label) if columns.label else tuple(examples)
    if missing := len(examples) - len(found):
        progress.notify(
            f"{missing:,} rows have no label in {columns.label!r} (-1, - or nothing); left out"
        )
    return found


def _noted(subject: Subject, examples: tuple[Example, ...], table: Table) -> Rows:
    note = {
        "name": published_name(table.name),
        "split": table.split,
        "task": subject.task.name,
        "max_length": subject.max_length,
        "fingerprint": fingerprint_of_rows(examples),
        "n": len(examples),
    }
    return Rows(examples, note)
