"""A loaded model with its task and its rows: which rows choose heads, and which report."""

from headprune.subject.opened import Subject, Voice, model_name, model_note, open_subject
from headprune.subject.rows import (
    Rows,
    calibration_rows,
    evaluation_rows,
    rows_that_chose,
    separate_rows,
)

__all__ = [
    "Rows",
    "Subject",
    "Voice",
    "calibration_rows",
    "evaluation_rows",
    "model_name",
    "model_note",
    "open_subject",
    "rows_that_chose",
    "separate_rows",
]
