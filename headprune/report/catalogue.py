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
        needs: The documents that it is made from, in words.
    """

    name: str
    title: str
    function: str
    needs: str

    def load(self) -> Callable[..., Any]:
        """Import the section's function."""
        loaded: Callable[..., Any] = load_function(self.function)
        return loaded


_SECTIONS = "headprune.report.sections"
_FIGURES = "headprune.report.figures"
_OUTCOME = "headprune.report.outcome"

_ROWS = (
    ReportSection("summary", "Summary", f"{_SECTIONS}:summary", "any"),
    ReportSection("heads", "Every head", f"{_FIGURES}:heads", "scores, roles or a plan"),
    ReportSection("roles", "What the heads do", f"{_FIGURES}:roles", "roles"),
    ReportSection(
        "similarity",
        "Which heads are alike",
        "headprune.report.similarity:similarity",
        "how alike heads are",
    ),
    ReportSection("layers", "Layer by layer", f"{_FIGURES}:layers", "a plan or scores"),
    ReportSection("quality", "Before and after", f"{_OUTCOME}:quality", "results"),
    ReportSection("sweep", "How far pruning can go", "headprune.report.sweeps:sweep", "a sweep"),
    ReportSection("speed", "Time and memory", f"{_OUTCOME}:speed", "results"),
    ReportSection(
        "methods",
        "Who was right",
        "headprune.report.agreement:methods",
        "several scores, or a sweep",
    ),
    ReportSection("comparison", "Compared", "headprune.report.compare:comparison", "a comparison"),
    ReportSection("made", "How it was made", f"{_SECTIONS}:made", "any"),
)

SECTIONS: dict[str, ReportSection] = {row.name: row for row in _ROWS}
"""All sections, by name, in the order in which a report has them."""
