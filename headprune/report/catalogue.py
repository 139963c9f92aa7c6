"""The catalogue of the sections of a report: one row describes a section, and nothing heavy is imported for it.

To add one, add a row here and write its function in the module that the row names. It takes the
:class:`~headprune.report.documents.Documents` that were found and returns what the section shows: tables, charts, tiles and
prose, in their order. A section that has nothing to show is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headprune.late import load_function


@dataclass(frozen=True)
class ReportSection:
    """One section of a report.

    Args:
        name: What links call it.
        title: Its heading.
        function: Where its function is, ``module:function``; imported when it is called.
    """

    name: str
    title: str
    function: str

    def load(self) -> Callable[..., Any]:
        """Import the section's function."""
        loaded: Callable[..., Any] = load_function(self.function)
        return loaded


_SECTIONS = "headprune.report.sections"
_FIGURES = "headprune.report.figures"
_OUTCOME = "headprune.report.outcome"

_ROWS = (
    ReportSection("summary", "Summary", f"{_SECTIONS}:summary"),
    ReportSection("heads", "Every head", f"{_FIGURES}:heads"),
    ReportSection("roles", "What the heads do", f"{_FIGURES}:roles"),
    ReportSection("similarity", "Which heads are alike", "headprune.report.similarity:similarity"),
    ReportSection("layers", "Layer by layer", f"{_FIGURES}:layers"),
    ReportSection("quality", "Before and after", f"{_OUTCOME}:quality"),
    ReportSection("sweep", "How far pruning can go", "headprune.report.sweeps:sweep"),
    ReportSection("speed", "Time and memory", f"{_OUTCOME}:speed"),
    ReportSection("methods", "Who was right", "headprune.report.agreement:methods"),
    ReportSection("comparison", "Compared", "headprune.report.compare:comparison"),
    ReportSection("made", "How it was made", f"{_SECTIONS}:made"),
)

SECTIONS: dict[str, ReportSection] = {row.name: row for row in _ROWS}
"""All sections, by name, in the order in which a report has them."""
