"""Measure a model on the rows that report: its metric with an interval, how long forwards take, its cache."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from headprune.artefact import EvalResult, Latency
from headprune.batch import Batch
from headprune.config import Settings
from headprune.errors import ConfigError, HeadpruneError
from headprune.evaluation import Predictions, doubts_of, metric_with_interval, predict
from headprune.footprint import kv_cache_bytes_per_token, latency_ms, sizes
from headprune.gate import Baseline, refuse_other_revision, refuse_other_rows
from headprune.inspection import inspect
from headprune.passes import Progress
from headprune.placement import count_parameters, versions
from headprune.tasks.catalogue import METRICS
from headprune.workflows.reading import Rows
from headprune.workflows.record import with_recorded_rows
from headprune.workflows.rows import evaluation_rows
from headprune.workflows.session import Session, model_note, open_session


def evaluate(
    settings: Settings, *, progress: Progress, baseline: Baseline | None = None
) -> EvalResult:
    """Evaluate a model, pruned or not.

    Raises:
        ConfigError: The result couldn't be compared with ``baseline``; nothing was evaluated.
    """
    if settings.data.eval_data is None:
        settings = with_recorded_rows(settings, progress=progress, measures=True)
    session = open_session(settings, progress=progress, only_reports=True)
    refuse_lengths(session)
    rows = evaluation_rows(session)
    if baseline is not None:
        refuse_other_revision(baseline, session.note)
        refuse_other_evaluation(baseline, session, rows)
    return measure(session, rows, heads=count_heads(session.model), note=session.note)[0]


def count_heads(model: PreTrainedModel) -> int | None:
    """Return the number of heads, None if they can't be found: such a model is evaluated nevertheless."""
    try:
        return len(inspect(model).heads)
    except HeadpruneError:
        return None


def refuse_other_evaluation(baseline: Baseline, session: Session, rows: Rows) -> None:
    """Refuse to measure a result that couldn't be compared with the baseline.

    Raises:
        ConfigError: The result couldn't be compared.
    """
    limit = session.settings.data.limit
    refuse_other_rows(baseline, metric=session.metric_name, limit=limit, data=rows.note)


def measure(
    session: Session,
    rows: Rows,
    *,
    heads: int | None,
    timed: bool = True,
    note: dict[str, Any] | None = None,
) -> tuple[EvalResult, Predictions]:
    """Measure the session's metric and, where ``timed``, how long forwards take."""
    model, notify = session.model, session.progress.notify
    batches = session.batches(rows.examples)
    predictions = predict(model, session.task, batches=batches, track=session.progress.track)
    seed = session.settings.data.seed
    metric = metric_with_interval(predictions, session.metric, seed=seed, notify=notify)
    timings = times_of([model], session, batches=batches)[0] if timed else {}
    absent = (predictions.classes or 0) - len(set(predictions.references.tolist()))
    by_class = session.metric_name in METRICS and METRICS[session.metric_name].by_class
    if by_class and absent > 0 and predictions.classes != 2:
        notify(
            f"{session.metric_name}: {absent} of the model's {predictions.classes} classes have no row: they count as 0"
        )
    data = rows.note
    if "warnings" not in data:  # no row has chosen anything: nobody has looked at the labels yet
        data = {**data, "warnings": list(doubts_of(predictions, session.task, model.config))}
        for doubt in data["warnings"]:
            notify(f"careful: {data['name']}: {doubt}")
    result = EvalResult(
        metric=session.metric_name,
        value=metric.value,
        interval=metric.interval,
        n=len(rows.examples),
        higher_is_better=metric.higher_is_better,
        parameters=count_parameters(model),
        heads=heads,
        latency_ms=timings,
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(model, batch=batches[0]),
        limit=session.settings.data.limit,
        seed=seed,
        resamples=metric.resamples,
        data=data,
        model=note or model_note(session.source, model),
        versions=versions(),
    )
    return result, predictions


def refuse_lengths(session: Session) -> None:
    """Refuse, before any work, to time rows that are longer than the model reads.

    Raises:
        ConfigError: Such a length is asked for.
    """
    settings = session.settings
    for length in settings.run.latency_length:
        data = settings.data.model_copy(update={"max_length": length})
        longer = replace(session, settings=settings.model_copy(update={"data": data}))
        if longer.max_length < length:
            raise ConfigError(
                f"the model reads at most {longer.max_length} tokens",
                where=f"`latency_length={length}`",
                hint=f"use `latency_length={longer.max_length}` or less",
            )


def times_of(
    models: Sequence[PreTrainedModel], session: Session, *, batches: Sequence[Batch]
) -> list[dict[str, Latency]]:
    """Return for each model how long its forwards take, in turns; empty if the settings ask for no latency."""
    run, progress = session.settings.run, session.progress
    if not run.latency:
        return [{} for _ in models]
    timed = sizes(batches, lengths=run.latency_length, rows=run.latency_batch)
    return latency_ms(models, sizes=timed, track=progress.track, notify=progress.notify)
