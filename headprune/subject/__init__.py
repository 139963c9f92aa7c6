"""A loaded model with its task and its rows: which rows choose heads, and which report."""

from headprune.subject.opened import (
    Progress,
    Subject,
    find_model,
    model_name,
    model_note,
    open_subject,
    origin_of,
)
from headprune.subject.rows import (
    Rows,
    calibration_rows,
    evaluation_rows,
    evaluation_source,
    rows_that_chose,
    separate_rows,
)

__all__ = [
    "Progress",
    "Rows",
    "Subject",
    "calibration_rows",
    "evaluation_rows",
    "evaluation_source",
    "find_model",
    "model_name",
    "model_note",
    "open_subject",
    "origin_of",
    "rows_that_chose",
    "separate_rows",
]
