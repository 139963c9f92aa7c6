"""A report: one HTML file that needs nothing else, made from documents alone."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headprune.errors import CheckpointError
from headprune.models.manifest import output_directory, refuse_unusable_output, write_manifest
from headprune.report.catalogue import SECTIONS, ReportSection
from headprune.report.charts import Chart, inline, picture
from headprune.report.documents import Documents
from headprune.runtime.files import staged_file
from headprune.runtime.targets import refuse_unwritable

_HERE = Path(__file__).parent
_OURS = b'<meta name="generator" content="headprune report">'
"""Stands near the top of every report: only a file that has it is ever replaced."""


def contents(
    documents: Documents, sections: Mapping[str, ReportSection] = SECTIONS
) -> dict[ReportSection, list[object]]:
    """Return what each section shows; a section that has nothing to show is left out."""
    shown = {row: list(row.load()(documents)) for row in sections.values()}
    return {row: parts for row, parts in shown.items() if parts}


def page(documents: Documents, shown: Mapping[ReportSection, list[object]]) -> str:
    """Return the HTML. All that documents say is escaped; the browser runs the page's own script alone, and asks no network.

    The same documents make the same bytes.
    """
    style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    charts = [part for parts in shown.values() for part in parts if isinstance(part, Chart)]
    drawn = {
        chart.name: {width: Markup(svg) for width, svg in inline(chart).items()} for chart in charts
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=documents.model_name,
        sections=shown,
        drawn=drawn,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def refuse_unusable_report(file: Path, *, pictures: Path | None, overwrite: bool) -> None:
    """Check, before any work starts, that a report and its pictures can be written.

    Raises:
        CheckpointError: They can't; or something lies there that isn't a report, or is one and ``overwrite`` is off.
    """
    refuse_unwritable(file, where=f"`out={file}`")
    if file.exists():
        if not overwrite:
            raise CheckpointError(
                f"{file} is there already",
                where=f"`out={file}`",
                hint="choose another name, or say `overwrite=True` to replace it",
            )
        _refuse_other_files(file)
    if pictures is not None:
        refuse_unusable_output(pictures, overwrite=overwrite)


def _refuse_other_files(file: Path) -> None:
    """Refuse to replace what is no report."""
    with file.open("rb") as opened:
        start = opened.read(1000)
    if _OURS not in start:
        raise CheckpointError(
            f"{file} is no report of headprune's, and is not replaced",
            where=f"`out={file}`",
            hint="choose another name, or remove it yourself",
        )


def write_report(html: str, file: Path, *, overwrite: bool) -> None:
    """Write a report, atomically.

    Raises:
        CheckpointError: It can't be written; what was there is as it was.
    """
    may_replace = _refuse_other_files if overwrite else None
    with staged_file(file, may_replace=may_replace) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def write_pictures(
    shown: Mapping[ReportSection, list[object]], folder: Path, *, overwrite: bool
) -> tuple[str, ...]:
    """Write every chart as PNG and SVG, for papers and cards; returns the names of the charts.

    Raises:
        CheckpointError: They can't be written.
    """
    charts = [part for parts in shown.values() for part in parts if isinstance(part, Chart)]
    with output_directory(folder, overwrite=overwrite) as staging:
        for chart in charts:
            (staging / f"{chart.name}.png").write_bytes(picture(chart, kind="png"))
            (staging / f"{chart.name}.svg").write_bytes(picture(chart, kind="svg"))
        write_manifest(staging)
    return tuple(chart.name for chart in charts)
