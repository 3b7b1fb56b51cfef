"""How pages look in a browser: contrast, phones, without a script; sorting, filtering, saving."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from jaxmnist.report.comparison import make_comparison

SIZES = ({"width": 1280, "height": 900}, {"width": 390, "height": 844})
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
# The lowest contrast of a text with what lies behind it, by WCAG's formula, and that text. axe-core
# leaves out what is scrolled out of sight, and text of figures.
LOWEST = """() => {
  const rgba = colour => {
    const parts = colour.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const scale = colour.startsWith('color(') ? 1 : 255;
    return [...parts.slice(0, 3).map(part => part / scale), parts[3] ?? 1];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, k) => a * part + (1 - a) * below[k]);
  const behind = element => element === null ? [1, 1, 1]
    : over(rgba(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const luminance = colour => {
    const [r, g, b] = colour.map(part =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement;
    if (!text || parent.closest('script, style, title, template, defs')) continue;
    const style = getComputedStyle(parent), below = behind(parent);
    const own = over(rgba(parent.closest('svg') ? style.fill : style.color), below);
    const [bright, dark] = [luminance(own), luminance(below)].sort((a, b) => b - a);
    found.push([style.opacity === '1' ? (bright + 0.05) / (dark + 0.05) : 0, text]);
  }
  return [found.length, ...found.sort((a, b) => a[0] - b[0])[0]];
}"""
# The height in pixels of the smallest letters of a figure: their size times the scale.
SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg text')].map(text => {
  const { a, b } = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
}))"""
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
    return {"run": eight.store.path / "report.html", "comparison": compared}


@pytest.fixture
def shown(browser, pages, name, scheme):
    """A page with all its folded parts open."""
    # Its policy would keep axe's script out, which is no part of the page.
    context = browser.new_context(
        color_scheme=scheme, reduced_motion="reduce", bypass_csp=True, viewport=SIZES[0]
    )
    page = context.new_page()
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    yield page
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_everybody_can_read_it(shown):
    """By axe-core's rules of WCAG 2.1 AA, and every text by the formula of its contrast."""
    found = Axe().run(shown, options=RULES).response
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found["violations"]] == []
    passed = {rule["id"]: len(rule["nodes"]) for rule in found["passes"]}
    assert passed["color-contrast"] > 100
    texts, ratio, text = shown.evaluate(LOWEST)
    assert texts > passed["color-contrast"]
    assert ratio >= 4.5, text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_nothing_is_cut_or_covered(shown):
    for size in SIZES:
        shown.set_viewport_size(size)
        assert shown.evaluate("document.scrollingElement.scrollWidth") <= size["width"]
        assert shown.evaluate(SMALLEST) >= 10.5
        assert shown.evaluate(COVERING) == []


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_wide_tables_scroll_within_themselves(browser, pages, name):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
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
        ("dense_layers>=1 val_accuracy>0", lambda t, score: t["dense_layers"] >= 1),
        ("val_accuracy>1", lambda t, score: False),
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
    assert [int(row["trial"]) for row in rows] == [
        entry.trial.index for entry in eight.ranking.ranked
    ]
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
        texts = page.locator(f"#figure-{figure} svg text").all_text_contents()
        assert {str(k) for k in range(8)} <= {text.strip() for text in texts}
    page.close()
