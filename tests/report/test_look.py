"""How pages look in a browser: contrast, phones, without a script; sorting, filtering, saving."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from jaxmnist.report.comparison import make_comparison

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
# WCAG's contrast of each text of a figure with the page, which axe doesn't measure: the lowest.
FIGURES = """() => {
  const light = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => {
      const value = part / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('svg text')].map(text => {
    const style = getComputedStyle(text), own = light(style.fill);
    const ratio = (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
    return [Number(style.opacity) === 1 ? ratio : 0, text.textContent];
  }).sort((a, b) => a[0] - b[0])[0];
}"""
# The height in pixels of the smallest letters of a figure: their size times the scale.
SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg text')].map(text =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
# Pairs of labels of a figure that cover each other.
COVERING = """() => [...document.querySelectorAll('figure')].flatMap(figure => {
  const boxes = [...figure.querySelectorAll('svg text')].map(text => [text.textContent.trim(),
    text.getBoundingClientRect()]).filter(([text]) => text);
  return boxes.flatMap(([one, a], k) => boxes.slice(k + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
    .map(([two]) => `${figure.id}: ${one} | ${two}`));
})"""


@pytest.fixture(scope="module")
def pages(eight, finished, tmp_path_factory) -> dict[str, Path]:
    """The page of a run of eight trials, and that of a comparison."""
    compared = tmp_path_factory.mktemp("compared") / "comparison.html"
    compared.write_text(make_comparison([eight, finished], compared.parent), "utf-8")
    return {"run": eight.directory.path / "report.html", "comparison": compared}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_everybody_can_read_it(browser, pages, name, scheme, width):
    """By axe-core's rules of WCAG 2.1 AA, contrast of 4.5:1 among them; nothing covered or cut."""
    # Its policy would keep axe's script out, which is no part of the page.
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        reduced_motion="reduce",
        bypass_csp=True,
    )
    page = context.new_page()
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = Axe().run(page, options=RULES).response
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found["violations"]] == []
    passed = {rule["id"]: len(rule["nodes"]) for rule in found["passes"]}
    assert passed["color-contrast"] > 100
    unknown = [rule for rule in found["incomplete"] if rule["id"] == "color-contrast"]
    assert [node["html"][:200] for rule in unknown for node in rule["nodes"]] == []
    ratio, text = page.evaluate(FIGURES)
    assert ratio >= 4.5, text
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.evaluate(SMALLEST) >= 10.5
    assert page.evaluate(COVERING) == []
    context.close()


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_wide_tables_scroll_within_themselves(browser, pages, name):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages[name].as_uri())
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => [e.tabIndex, e.clientWidth, getComputedStyle(e).overflowX])"
    )
    assert wide
    for tab, inside, overflow in wide:
        assert tab == 0  # reached by keyboard
        assert inside <= 390
        assert overflow == "auto"
    # Every column is there: none is left out on a small screen.
    assert page.locator("th:visible, td:visible").count() == page.locator("th, td").count()
    page.close()


def test_it_is_whole_without_a_script(browser, pages, eight):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["run"].as_uri())
    rows = page.locator("table.sortable tbody tr")
    assert rows.count() == 8
    assert rows.all()[0].locator("th").inner_text() == str(eight.best_trial.index)
    assert all(row.is_visible() for row in rows.all())
    assert page.locator("button, input").count() == 0  # nothing that would do nothing
    assert page.locator("section").count() == page.locator("nav a").count()
    context.close()


@pytest.fixture
def table(browser, pages):
    page = browser.new_page()
    page.goto(pages["run"].as_uri())
    yield page
    page.close()


def column(page, number: int) -> list[str]:
    """The visible texts of a column of the table of trials."""
    cells = page.locator(f"table.sortable tbody tr:not([hidden]) > :nth-child({number + 1})")
    return cells.all_inner_texts()


def test_the_table_is_sorted(table, eight):
    heads = [
        text.removesuffix(" ↕") for text in table.locator(".sortable thead th").all_inner_texts()
    ]
    ranked = column(table, 0)
    buttons = table.locator(".sortable thead button")
    place = next(k for k, head in enumerate(heads) if head.startswith("parameters"))
    buttons.nth(place).click()
    counts = [int(text.replace(",", "")) for text in column(table, place)]
    assert counts == sorted(trial.parameters for trial in eight.trials)
    assert table.locator(".sortable thead th").nth(place).get_attribute("aria-sort") == "ascending"
    buttons.nth(place).click()
    counts = [int(text.replace(",", "")) for text in column(table, place)]
    assert counts == sorted((trial.parameters for trial in eight.trials), reverse=True)
    buttons.nth(place).click()
    assert column(table, 0) == ranked  # the ranking again
    buttons.nth(0).focus()
    table.keyboard.press("Enter")
    assert column(table, 0) == [str(k) for k in range(8)]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("filters=8", lambda t, score: t["filters"] == 8),
        ("filters=8 conv_layers<2", lambda t, score: t["filters"] == 8 and t["conv_layers"] < 2),
        ("filters!=8", lambda t, score: t["filters"] != 8),
        ("dense_layers>=1 accuracy>0", lambda t, score: t["dense_layers"] >= 1),
        ("accuracy>1", lambda t, score: False),
        ("nonsense", lambda t, score: False),
        ("", lambda t, score: True),
    ],
)
def test_the_table_is_filtered(table, eight, words, wanted):
    table.locator(".filter input").fill(words)
    right = {str(t.index) for t in eight.trials if wanted(t.hyperparameters, t.score)}
    assert set(column(table, 0)) == right
    assert table.locator(".filter output").inner_text() == f"{len(right)} of 8 rows"


def test_a_filter_of_no_column_says_which_there_are(table):
    table.locator(".filter input").fill("layers=2")
    said = table.locator(".filter output").inner_text()
    assert said.startswith("no column fits layers=2; they are trial, filters, conv_layers")


def test_the_table_is_saved(table, eight, tmp_path):
    """From a page that no server serves."""
    with table.expect_download() as waited:
        table.locator("a.save").click()
    assert waited.value.suggested_filename == "small-trials.csv"
    waited.value.save_as(tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [entry.trial.index for entry in eight.ranked]
    for row in rows:
        trial = eight.trials[int(row["trial"])]
        assert float(row["val_accuracy"]) == trial.score
        assert float(row["loss"]) == trial.metric("loss")[-1]
        assert int(row["parameters"]) == trial.parameters
        for name, value in trial.hyperparameters.items():
            assert row[name] == str(value)


def test_lines_are_labelled(browser, pages, eight):
    """Each figure of curves names every trial in text, without being pointed at."""
    page = browser.new_page()
    page.goto(pages["run"].as_uri())
    for figure in ("curves-val-accuracy", "curves-loss", "parallel"):
        texts = page.locator(f"#figure-{figure} svg text").all_inner_texts()
        assert {str(k) for k in range(8)} <= {text.strip() for text in texts}
    page.close()
