"""A report says what its documents say, and nothing that a stranger wrote into them runs."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import report_documents as made
from rich.console import Console
from test_earlier_documents import RESULTS, SCORES, _written

from headprune.analysis.roles import Measure, Roles
from headprune.errors import CheckpointError
from headprune.heads import HeadId
from headprune.plans import HeadScores, PlannedSite, PruningPlan
from headprune.report.card import model_card
from headprune.report.catalogue import SECTIONS, ReportSection
from headprune.report.charts import Chart, inline, picture
from headprune.report.compare import comparison_tables
from headprune.report.documents import read_documents
from headprune.report.page import contents, page
from headprune.report.parts import Prose, Table
from headprune.untrusted.documents import MOST_BYTES

HOSTILE = """</script></title></svg><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'$\\frac{{{7*7}}&amp;"""


class Elements(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text.append(data)


def html_of(*paths):
    documents = read_documents(paths)
    return page(documents, contents(documents))


def charts_of(documents):
    return [
        one for parts in contents(documents).values() for one in parts if isinstance(one, Chart)
    ]


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        (["scores.json"], ["summary", "heads", "layers", "made"]),
        (["scores.json", "scores.random.json"], ["summary", "heads", "layers", "methods", "made"]),
        (["plan.json"], ["summary", "heads", "layers", "made"]),
        (["roles.json"], ["heads", "roles", "made"]),
        (["sweep.json"], ["sweep", "methods", "made"]),
        (["results.json"], ["summary", "quality", "speed", "made"]),
        (["eval.json"], ["summary", "made"]),
        (["verdict.json"], ["summary", "made"]),
        (["similarity.json"], ["similarity", "made"]),
        (["compare.json"], ["comparison", "made"]),
        ([], [*SECTIONS]),
    ],
)
def test_sections_are_those_whose_documents_are_there(names, sections, tmp_path):
    documents = read_documents([made.write(tmp_path / "run", *names)])
    shown = contents(documents)
    assert [row.name for row in shown] == sections
    html = page(documents, shown)
    assert [
        value for tag, name, value in Elements(html).attributes if (tag, name) == ("section", "id")
    ] == sections


def test_files_and_directories_say_the_same(tmp_path):
    folder = made.write(tmp_path / "run", "scores.json", "plan.json")
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "notes.json").write_text('{"format": 1, "heads": ["L0.H0"]}')
    assert read_documents([folder]) == read_documents(
        [folder / "plan.json", folder / "scores.json"]
    )
    several = tmp_path / "both.json"
    several.write_text(
        json.dumps(
            [json.loads((folder / name).read_text()) for name in ("plan.json", "scores.json")]
        )
    )
    assert [one.value for one in read_documents([several]).items] == [
        one.value for one in read_documents([folder]).items
    ]


def test_what_is_there_twice_is_there_once(tmp_path):
    one, other = (made.write(tmp_path / name, "scores.json") for name in ("one", "other"))
    assert len(read_documents([one, other]).items) == 1


def test_the_verdict_of_prune_is_read_beside_its_results(tmp_path):
    pair = {
        "format": 1,
        "results": json.loads(made.results().to_json()),
        "verdict": json.loads(made.verdict().to_json()),
    }
    path = tmp_path / "pruned.json"
    path.write_text(json.dumps(pair))
    assert [one.value for one in read_documents([path]).items] == [made.results(), made.verdict()]


def test_every_number_of_every_head_is_in_the_map_and_its_table(tmp_path):
    documents = read_documents([made.write(tmp_path / "run")])
    chart = next(chart for chart in charts_of(documents) if chart.name == "heads")
    order = sorted(range(8), key=made.VALUES.__getitem__)
    roles = {0: "sink", 1: "sink", 3: "previous", 7: "sink"}
    for index, row in enumerate(chart.table.rows):
        assert row[0] == str(made.HEADS[index])
        assert float(row[1]) == made.VALUES[index]
        ends = [float(end) for end in re.findall(r"[-\d.e]+", row[2])]
        assert ends == pytest.approx(
            [made.VALUES[index] - 0.0196, made.VALUES[index] + 0.0196], rel=0.01
        )
        assert int(row[3]) == 1 + order.index(index)
        assert row[4] == roles.get(index, "")
        assert row[5] == ("removed" if made.HEADS[index] in made.REMOVED else "kept")
    root = ElementTree.fromstring(inline(chart)["wide"])
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [text.splitlines()[0] for text in titles] == [str(head) for head in made.HEADS]
    assert [text.splitlines()[-1] for text in titles] == [row[5] for row in chart.table.rows]


def test_the_summary_says_what_became_of_it(tmp_path):
    text = " ".join(Elements(html_of(made.write(tmp_path / "run"))).text)
    for words in (
        "3 of 8 heads of org/tiny were removed.",
        "0.8100 → 0.7900",
        "-0.0200 [-0.0600, +0.0200], within noise; n = 40",
        "1 of 1 proofs hold: masked == pruned.",
        "Check passed",
        "8 → 5",
        "-37.5%",
        "-25% [-39%, -8%], surely faster",
        "Of the 3 heads that are removed: 2 are sinks, 0 look at the previous token",
    ):
        assert words in text, words


def test_roles_that_a_plan_notes_are_shown_without_their_numbers(tmp_path):
    folder = made.write(tmp_path / "run", "scores.json")
    noted = made.plan().model_copy(update={"roles": made.roles().fates(made.REMOVED)})
    (folder / "plan.json").write_text(noted.to_json())
    documents = read_documents([folder])
    with_numbers = charts_of(read_documents([made.write(tmp_path / "all")]))[:2]
    for chart, other in zip(charts_of(documents)[:2], with_numbers, strict=True):
        column = chart.table.titles.index("roles" if chart.name == "heads" else "heads")
        assert [row[column] for row in chart.table.rows] == [
            row[column] for row in other.table.rows
        ]
    assert "2 are sinks" in " ".join(Elements(html_of(folder)).text)


def test_the_page_and_the_card_say_the_same_of_roles(tmp_path):
    """Whatever other documents of roles say: the plan was made with its own."""
    fates = made.roles().fates(made.REMOVED)
    plan = made.plan().model_copy(update={"roles": fates})
    results = made.results().model_copy(update={"roles": fates})
    card = model_card(results, plan, source=None)
    folder = made.write(tmp_path / "run")
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "results.json").write_text(results.to_json())
    other = made.roles()
    other = other.model_copy(update={"measures": other.measures[1:], "data": {}})
    (folder / "roles.json").write_text(other.to_json())
    counts, basis = "2 are sinks, 0 look at the previous token", "measured on 40 rows of rows.csv"
    told = f"Of the 3 heads that are removed: {counts} (roles were {basis})."
    for paths in ([folder], [folder / "results.json"], [folder / "plan.json"]):
        parts = [part for parts in contents(read_documents(paths)).values() for part in parts]
        texts = [part.text for part in parts if isinstance(part, Prose)]
        assert [text for text in texts if "heads that are removed" in text] == [told]
    assert told in card


def test_a_plan_is_drawn_with_the_scores_of_its_own_model(tmp_path):
    other = {**made.MODEL, "fingerprint": "0" * 16}
    folder = made.write(tmp_path / "run", "plan.json")
    stranger = made.scores("gradient", made.VALUES[::-1]).model_copy(update={"model": other})
    (folder / "scores.json").write_text(stranger.to_json())
    (folder / "scores.own.json").write_text(made.scores().to_json())
    maps = [
        chart for chart in charts_of(read_documents([folder])) if chart.name.startswith("heads")
    ]
    assert ["unique" in chart.title for chart in maps] == [True, False], (
        "and the other model has a map of its own"
    )
    assert maps[0].table.rows[0][1] == "0.5"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_document_with_the_most_roles_is_shown_unless_a_file_is_named(order, tmp_path):
    """A plan's directory has the few roles that cost little."""
    every, few = made.roles(), made.roles()
    few = few.model_copy(update={"measures": few.measures[:1]})
    run = made.write(tmp_path / "run", "plan.json")
    (run / "roles.json").write_text(few.to_json())
    paths = [run, made.write(tmp_path / "analyzed", "roles.json")]
    named = [*(paths[place] for place in order)]
    assert read_documents(named).beside(made.plan(), Roles) == every
    assert read_documents([*named, run / "roles.json"]).beside(made.plan(), Roles) == few
    assert read_documents([run]).beside(made.plan(), Roles) == few


def test_a_file_too_large_for_a_document_is_not_read(tmp_path, monkeypatch):
    folder = made.write(tmp_path / "run", "scores.json")
    with (folder / "large.json").open("wb") as file:
        file.write(b'{"format": 1}')
        file.truncate(MOST_BYTES + 1)
    opened = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or b"")
    assert read_documents([folder / "scores.json"]).items
    with pytest.raises(CheckpointError, match="no document"):
        read_documents([folder])
    assert opened == ["scores.json"]


def test_heads_that_are_alike_have_a_colour(tmp_path):
    documents = read_documents([made.write(tmp_path / "run", "similarity.json")])
    (chart,) = charts_of(documents)
    assert [row[:2] for row in chart.table.rows] == [("1", "4"), ("2", "4")]
    assert chart.table.rows[0][2] == "L0.H0, L0.H1, L0.H2, L0.H3"
    text = inline(chart)["wide"]
    assert len(re.findall(r"<title>L\d.H\d\ncluster [12], of 4 heads</title>", text)) == 8
    assert text.count("var(--c0)") > text.count("var(--c2)") == 0


def test_a_comparison_says_in_a_report_what_it_says_on_the_terminal(tmp_path):
    documents = read_documents([made.write(tmp_path / "run", "compare.json")])
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(comparison_tables(made.comparison()))
    shown = console.file.getvalue()
    parts = list(SECTIONS["comparison"].load()(documents))
    assert {type(part) for part in parts} == {Table, Prose}
    for part in parts:
        rows = part.rows if isinstance(part, Table) else ((part.text,),)
        for cell in (cell for row in rows for cell in row):
            assert cell in " ".join(shown.split()), cell


def test_documents_of_earlier_versions_are_read(tmp_path):
    paths = [
        _written(tmp_path / "scores.json", SCORES),
        _written(tmp_path / "results.json", RESULTS),
    ]
    text = " ".join(Elements(html_of(*paths)).text)
    assert "1 of 2 heads" in text
    assert "unique" in text


def test_the_same_documents_make_the_same_bytes(tmp_path):
    import matplotlib as mpl

    folder = made.write(tmp_path / "run")
    first = html_of(folder)
    chart = charts_of(read_documents([folder]))[0]
    pictures = {kind: picture(chart, kind=kind) for kind in ("png", "svg")}
    with mpl.rc_context({"font.size": 33, "axes.facecolor": "red"}):
        assert html_of(folder) == first
        assert {kind: picture(chart, kind=kind) for kind in pictures} == pictures
        assert mpl.rcParams["font.size"] == 33
    assert pictures["png"].startswith(b"\x89PNG")
    ElementTree.fromstring(pictures["svg"])


def test_names_in_a_page_are_there_once(tmp_path):
    parsed = Elements(html_of(made.write(tmp_path / "run")))
    names = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(names) == len(set(names))
    referred = [value[1:] for _, name, value in parsed.attributes if name in ("href", "xlink:href")]
    assert set(referred) <= set(names)


def hostile(value, key=""):
    """Return a document with every free text in it replaced."""
    if isinstance(value, dict):
        return {k: hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, key) for v in value]
    typed = (
        "head",
        "nearest",
        "sink",
        "previous",
        "heads",
        "remove",
        "removed",
        "loads_with",
        "objective",
        "normalize",
        "sha256",
        "role",
    )
    return HOSTILE if isinstance(value, str) and key not in typed else value


@pytest.fixture
def hostile_run(tmp_path):
    for name, maker in made.EVERYTHING.items():
        document = json.loads(maker().to_json())
        document.pop("sha256")
        (tmp_path / name).write_text(json.dumps(hostile(document)))
    names = {f"{HOSTILE} {place}": HOSTILE for place in range(2)}
    roles = json.loads((tmp_path / "roles.json").read_text())
    for measure in roles["measures"]:
        measure["role"] = HOSTILE
    roles["thresholds"] = names
    (tmp_path / "roles.json").write_text(json.dumps(roles))
    (tmp_path / "headprune.yaml").write_text(f"model: {json.dumps(HOSTILE)}\n")
    return tmp_path


def test_what_strangers_write_is_text(hostile_run):
    html = html_of(hostile_run)
    parsed = Elements(html)
    assert parsed.tags.count("script") == 1
    assert not {"img", "iframe", "object", "link", "form"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "".join(parsed.text).count("window.hacked=1") > 20, "and it is there, as text"
    allowed = ("#", "http://www.w3.org/")
    for _, name, value in parsed.attributes:
        if name in ("href", "src", "xlink:href") or name.startswith("xmlns"):
            assert value.startswith(allowed)


def test_a_section_is_one_row_and_one_function(tmp_path, monkeypatch):
    row = ReportSection("count", "How many", f"{__name__}:count_documents")
    monkeypatch.setitem(SECTIONS, row.name, row)
    text = " ".join(Elements(html_of(made.write(tmp_path / "run"))).text)
    assert "How many" in text
    assert "there are 10" in text


def test_the_documents_name_every_section():
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([A-Z][^|]+) \|", text, flags=re.M) == [
        row.title for row in SECTIONS.values()
    ]


def count_documents(documents):
    yield Prose(f"there are {len(documents.items)}")


def test_a_large_model_stays_below_five_megabytes(tmp_path):
    heads = tuple(HeadId.parse(f"L{layer}.H{head}") for layer in range(80) for head in range(64))
    values = tuple(float(place % 977) for place in range(len(heads)))
    scores = HeadScores(
        method="unique", heads=heads, values=values, standard_errors=values, n=9, seed=0
    )
    numbers = {"values": values, "low": values, "high": values, "baseline": values}
    counts = {"queries": (50,) * len(heads), "examples": (9,) * len(heads)}
    measures = tuple(
        Measure(role=role, **numbers, **counts, passes=tuple(value > least for value in values))
        for role, least in (("sink", 500), ("broad", 800), ("induction", 950))
    )
    removed = tuple(head for head, value in zip(heads, values, strict=True) if value < 300)
    kept = {
        f"L{layer}": sum(head.site.layer == layer for head in {*heads} - {*removed})
        for layer in range(80)
    }
    (tmp_path / "scores.json").write_text(scores.to_json())
    (tmp_path / "roles.json").write_text(Roles(heads=heads, measures=measures).to_json())
    (tmp_path / "plan.json").write_text(PruningPlan(remove=removed, kept_per_site=kept).to_json())
    html = html_of(tmp_path)
    assert html.count("L79.H63\n") == 1
    assert len(html.encode()) < 5e6


def test_heads_stand_in_the_order_of_the_model(tmp_path):
    heads = tuple(
        map(
            HeadId.parse, ("encoder.L0.H0", "encoder.L1.H0", "decoder.L0.H0", "decoder.L0.cross.H0")
        )
    )
    scores = HeadScores(method="unique", heads=heads, values=(1.0, 2.0, 3.0, 4.0), n=9, seed=0)
    sites = {str(head.site): PlannedSite(heads=(0,)) for head in sorted(heads)}
    plan = PruningPlan(remove=heads[1:2], kept_per_site=dict.fromkeys(sites, 1), sites=sites)
    (tmp_path / "scores.json").write_text(scores.to_json())
    (tmp_path / "plan.json").write_text(plan.to_json())
    chart = charts_of(read_documents([tmp_path]))[0]
    assert [row[0] for row in chart.table.rows] == [str(head) for head in heads]
    found = re.findall(r">((?:en|de)coder[.\w]+)</text>", inline(chart)["narrow"])
    assert found == [str(head.site) for head in heads]


def test_charts_have_tables_and_marks_that_say_something(tmp_path):
    charts = charts_of(read_documents([made.write(tmp_path / "run")]))
    assert tuple(chart.name for chart in charts) == made.CHARTS
    for chart in charts:
        assert chart.table.rows
        svgs = inline(chart)
        for svg in svgs.values():
            assert svg.count('class="mark"') == svgs["wide"].count("<title>") > 0
            assert "<image" not in svg
    with pytest.raises(ValueError, match="zip"):
        inline(
            replace(charts[0], draw=lambda drawing: drawing.mark(_one_point(drawing), ["a", "b"]))
        )


def _one_point(drawing):
    return drawing.figure.add_subplot().scatter([0], [0])


def test_tables_are_whole(tmp_path):
    for parts in contents(read_documents([made.write(tmp_path / "run")])).values():
        for part in parts:
            table = part.table if isinstance(part, Chart) else part
            if isinstance(table, Table):
                assert {len(row) for row in table.rows} == {len(table.titles)}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "can't be read"),
        ('{"format": 1}', "no document that a report is made of"),
        ("{", "is damaged"),
        ("[1]", "no document that a report is made of"),
    ],
)
def test_files_that_are_no_documents_are_named(content, what, tmp_path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=what):
        read_documents([path])


def test_directories_without_documents_are_named_and_damage_is(tmp_path):
    made.write(tmp_path / "runs" / "001-unique", "scores.json")
    with pytest.raises(CheckpointError, match="holds no document") as raised:
        read_documents([tmp_path / "runs"])
    assert "001-unique" in raised.value.hint
    path = tmp_path / "runs" / "001-unique" / "scores.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match="changed after it was written"):
        read_documents([path.parent])
