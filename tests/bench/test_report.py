"""The page: nothing from outside, nothing that text can break; and what a browser makes of it."""

import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from minddistill.bench.plots import curves
from minddistill.bench.report import Column, Confusion, Section, Table, write_report

HOSTILE = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\"'&"
ROWS = [[HOSTILE, 3, 0.25], ["bad film", 20, None], ["a great film", 100, 0.5]]
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    steps = [{"stage": HOSTILE, "epoch": 1, "step": step, "loss": 1 / step, "loss_scale": 256.0} for step in (5, 10)]
    examples = Table([Column("text", wide=True), Column("row", "d"), Column("share", ".1%")], ROWS, searchable=True)
    sections = [
        Section("Facts", note=HOSTILE, facts={HOSTILE: HOSTILE, "a path": "/very/long" * 40}),
        Section("Confusion", confusions=[Confusion("student", ("no", HOSTILE), np.array([[8, 2], [0, 0]]))]),
        Section("Curves", figures=curves(steps)),
        Section("Examples", table=examples),
        Section("Configuration", code=f"name: {HOSTILE}"),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, HOSTILE, HOSTILE, [("accuracy", "0.9", HOSTILE)], sections)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_text_stays_text_and_nothing_is_fetched(page):
    found = Elements(page.read_text()).found
    assert [tag for tag, _ in found].count("script") == 1
    assert not [tag for tag, _ in found if tag in ("img", "iframe", "object")]
    for tag, attributes in found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_values_are_shown_in_their_columns_format():
    column = Column("share", ".1%")
    assert [column.show(value) for value in (0.991, None, float("nan"))] == ["99.1%", "–", "–"]
    assert Column("parameters", ",d").show(17390594) == "17,390,594"


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on the PATH; apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield found
        found.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(page, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    view, said = context.new_page(), []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: said.append(request.url) if request.url != page.as_uri() else None)
    view.goto(page.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    pictures = view.locator("figure svg")
    assert pictures.count() == 2
    for index in range(pictures.count()):
        box = pictures.nth(index).bounding_box()
        assert box["width"] > 250 and box["height"] > 150 and box["x"] >= 0 and box["x"] + box["width"] <= width
    ink = view.locator("figure svg text").first.evaluate("node => getComputedStyle(node).fill")
    assert (sum(int(part) for part in ink[4:-1].split(",")) > 384) == (scheme == "dark")

    def column(index):
        return [row.strip() for row in view.locator(f".sortable tbody tr td:nth-child({index})").all_inner_texts()]

    heads = view.locator(".sortable th button")
    heads.nth(1).click()
    assert column(2) == ["3", "20", "100"] and view.locator("th[aria-sort=ascending]").count() == 1
    heads.nth(1).click()
    assert column(2) == ["100", "20", "3"]
    heads.nth(2).click()
    assert column(3) == ["25.0%", "50.0%", "–"]
    heads.nth(2).click()
    assert column(3) == ["50.0%", "25.0%", "–"]
    heads.nth(0).click()
    assert column(1)[1:] == ["a great film", "bad film"]
    assert view.locator(".search").is_visible()
    view.locator("input[type=search]").fill("FILM great")
    assert view.locator(".sortable tbody tr:visible").count() == 1
    assert view.locator("output").inner_text() == "1 of 3 rows"
    assert view.evaluate("window.broken") is None
    assert said == []
    context.close()


def test_without_scripts_nothing_is_shown_that_does_nothing(page, browser):
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto(page.as_uri())
    assert view.locator(".search").is_hidden() and view.locator(".sortable tbody tr").first.is_visible()
    context.close()
