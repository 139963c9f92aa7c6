"""A report: one HTML file that needs nothing else, made from documents alone."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headprune.models.manifest import output_directory, write_manifest
from headprune.report.catalogue import SECTIONS, ReportSection
from headprune.report.charts import Chart, inline, picture
from headprune.report.documents import Documents
from headprune.report.html import generator, source_of_policy

_HERE = Path(__file__).parent


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
        generator=Markup(generator("report")),
        policy=Markup(source_of_policy(script)),
    )


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
