"""A report in a real browser: nothing is asked of the network, nothing complains, charts can be read and pointed at."""

import json

import pytest
import report_documents as made
from browser import needs_chromium, page
from test_page import hostile_run, html_of  # noqa: F401 - a fixture

pytestmark = needs_chromium

SIZES = [(1280, 900), (390, 844)]
_MARKS = """
[...document.querySelectorAll(".chart")].filter(one => one.offsetParent).map(one => {
  const box = one.querySelector("svg").getBoundingClientRect();
  return {
    name: one.closest("figure").id, marks: one.querySelectorAll(".mark").length, left: box.left, right: box.right,
    height: box.height, table: one.closest("figure").querySelectorAll("details tbody tr").length,
  };
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with page(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(html_of(made.write(folder / "run")), encoding="utf-8")
    return path


def opened(browser, file, **more):
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(file, **more)
    return browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_opens_from_disk_and_fits(browser, file, width, height, scheme):
    opened(browser, file, width=width, height=height, dark=scheme == "dark")
    assert browser.complaints == []
    assert browser.requests == [file.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width, (
        "nothing to scroll sideways"
    )
    shown = browser.ask(_MARKS)
    assert [one["name"] for one in shown] == [f"chart-{name}" for name in made.CHARTS]
    for one in shown:
        assert one["marks"] > 0
        assert one["table"] > 0
        assert 0 <= one["left"] < one["right"] <= width
        assert one["height"] > 40
    assert (
        browser.ask("document.getElementById('summary').getBoundingClientRect().bottom")
        < 1.2 * height
    )


def test_text_is_large_enough_to_read_on_a_telephone(browser, file):
    opened(browser, file, width=390, height=844)
    sizes = browser.ask(
        """[...document.querySelectorAll(".chart.narrow text")].map(one =>
             parseFloat(getComputedStyle(one).fontSize) * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b))"""
    )
    assert min(sizes) > 10, "pixels"


def test_light_and_dark_are_what_was_asked_for(browser, file):
    def lightness(selector, of):
        colour = browser.ask(f"getComputedStyle(document.querySelector('{selector}')).{of}")
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 765

    for scheme, is_light in (("light", True), ("dark", False)):
        opened(browser, file, dark=scheme == "dark")
        assert (lightness("section", "backgroundColor") > 0.5) == is_light
        assert (lightness("body", "color") < 0.5) == is_light
        assert (lightness("#chart-roles .wide text", "fill") < 0.5) == is_light


@pytest.mark.parametrize(("width", "kind"), [(1280, "wide"), (390, "narrow")])
def test_a_head_that_is_pointed_at_says_what_is_known_of_it(browser, file, width, kind):
    opened(browser, file, width=width)
    browser.ask(f"document.querySelectorAll('#chart-heads .{kind} .mark')[7].id = 'here'")
    browser.hover("#here")
    tip = browser.ask("const t = document.getElementById('tip'); t.hidden ? null : t.textContent")
    assert tip.splitlines() == [
        "L1.H3", "importance 0.03 [0.0104, 0.0496]", "rank 3 of 8 (1 is least important)", "sink 0.7 (> 0.3)", "removed",
    ]  # fmt: skip
    left, right = browser.ask(
        "(() => { const b = t.getBoundingClientRect(); return [b.left, b.right]; })()"
    )
    assert 0 <= left < right <= width
    browser.hover("h1")
    assert browser.ask("t.hidden")


def test_the_keyboard_goes_from_mark_to_mark_and_says_them(browser, file):
    opened(browser, file)
    browser.ask("document.querySelector('#chart-heads .wide').focus()")
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        browser.press(key)
        said.append(browser.ask("document.getElementById('said').textContent").splitlines()[0])
    assert said == ["L0.H0", "L0.H1", "L1.H1", "L1.H0", "L0.H0", "L0.H0"]
    browser.press("Escape")
    assert browser.ask("document.getElementById('tip').hidden")


def test_a_screen_reader_is_told_what_each_part_is(browser, file):
    opened(browser, file)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = {}
    for node in tree:
        if not node.get("ignored"):
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            names.setdefault(role, []).append(name)
    assert len(names["image"]) == len(made.CHARTS)
    assert all(len(name) > 30 for name in names["image"])
    assert [name for name in names["heading"] if name == "Every head"]
    assert "Sections" in names["navigation"]
    assert all(names["table"]), "every table has a caption"


def test_the_page_may_ask_nothing_of_the_network(browser, file):
    opened(browser, file)
    fetching = "fetch('https://example.org/').then(() => 'answered', () => 'refused')"
    answer = browser.call("Runtime.evaluate", expression=fetching, awaitPromise=True)
    assert answer["result"]["value"] == "refused"
    assert any("Content Security Policy" in text for text in browser.complaints)


def test_names_of_strangers_run_nothing(browser, hostile_run):  # noqa: F811
    path = hostile_run / "report.html"
    path.write_text(html_of(hostile_run), encoding="utf-8")
    opened(browser, path, width=390)
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]
    assert browser.ask("typeof window.hacked") == "undefined"
    assert browser.ask("document.images.length") == 0
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    marks = json.loads(browser.ask("JSON.stringify(document.querySelectorAll('.mark').length)"))
    assert marks > 0


def test_it_prints_on_white(browser, file):
    opened(browser, file, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("document.querySelector('nav').offsetParent === null")
    raw = browser.call("Page.printToPDF")["data"]
    assert len(raw) > 10_000
    browser.call("Emulation.setEmulatedMedia", media="")
