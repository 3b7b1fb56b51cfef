"""The page in a real browser: Debian's Chromium, headless and offline."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import SECTIONS
from PIL import Image

from jaxmnist import Run
from jaxmnist.files import array_bytes, as_json, read_record, sha256, write_json
from jaxmnist.report.page import make_page
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.evaluation import calibration
from jaxmnist.runs.records import ModelReport

PICTURES = Path(__file__).parents[2] / "experiments" / "pictures.py"

OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth;
  const inside = element => element.closest('.scroll') && !element.matches('.scroll');
  return [...document.querySelectorAll('body *')]
    .filter(element => !inside(element) && !element.closest('svg'))
    .filter(element => element.getBoundingClientRect().right > wide + 0.5)
    .map(element => `${element.tagName} ${element.className}`);
}"""
COVERED = """() => [...document.querySelectorAll('svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].some(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 12 || own.right > box.right + 12
      || own.top < box.top - 12 || own.bottom > box.bottom + 12;
  });
}).map(svg => svg.closest('figure').id)"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(browser, finished, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        reduced_motion="reduce",
        offline=True,
    )
    page = context.new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (finished.store.path / "report.html").as_uri()
    page.goto(address)
    page.mouse.wheel(0, 20_000)
    assert said == []
    # Images are part of the page; nothing else is requested.
    assert [url for url in requests if not url.startswith("data:image/png")] == [address]
    for section in SECTIONS:
        assert page.locator(f"section#{section} h2").is_visible()
    assert page.locator("figure svg").count() >= 12
    assert page.locator("table#confusion td.right").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(COVERED) == []
    loaded = "image => image.naturalWidth === 28"
    assert page.evaluate(f"[...document.images].every({loaded})")
    page.click("nav a[href='#features']")
    place = page.evaluate("document.querySelector('#features').getBoundingClientRect().top")
    assert 0 <= place < 300
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.strip("rgb()").split(","))
    assert (brightness > 600) == (scheme == "light")
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, dd, figcaption')]"
        ".filter(e => e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12
    context.close()


def test_the_page_can_be_printed(browser, finished):
    page = browser.new_page(color_scheme="dark")
    page.goto((finished.store.path / "report.html").as_uri())
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in background.strip("rgb()").split(",")) > 600  # paper is bright
    assert not page.locator("nav").is_visible()
    page.close()


def test_a_running_page_loads_itself_again(browser, finished, tmp_path: Path):
    shutil.copytree(finished.store.path, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "best")
    file = tmp_path / "report.html"
    file.write_text(make_page(Run(tmp_path / "small"), images=False, reload=True))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(file.as_uri())
    assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "30"
    assert page.evaluate(OVERFLOWING) == []
    page.close()


def test_names_of_classes_fit(browser, finished, tmp_path: Path):
    """Of ten classes in a table, and of many in a figure."""
    path = tmp_path / "small"
    shutil.copytree(finished.store.path, path)
    test = read_record(path / "best" / "test.json", ModelReport)
    for classes in (10, 200):
        counts = np.diag(np.full(classes, 20))
        counts[1, 0] = 3
        names = tuple(f"a long name of class {k} 数字" for k in range(classes))
        evaluation = Evaluation(tuple(range(classes)), counts, names)
        probabilities = np.full((int(counts.sum()), classes), 0.1, np.float32)
        content = array_bytes(probabilities)
        found = calibration(np.zeros(len(probabilities), int), probabilities)
        (path / "best" / "test_probabilities.npy").write_bytes(content)
        changed = {
            **vars(evaluation.record()),
            "loss": found.loss,
            "calibration_error": found.error,
            "reliability": found.bins,
            "probabilities_sha256": sha256(content),
        }
        write_json(path / "best" / "test.json", as_json(replace(test, **changed)))
        file = tmp_path / f"{classes}.html"
        file.write_text(make_page(Run(path), images=False))
        page = browser.new_page()
        page.goto(file.as_uri())
        assert page.locator("#confusion td.right").count() == (10 if classes == 10 else 0)
        assert page.locator("#figure-confusion image").count() == (0 if classes == 10 else 1)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(OVERFLOWING) == []
            assert page.evaluate(COVERED) == []
        page.close()


def test_readmes_pictures(browser, finished, tmp_path):
    """The script that takes them, on a run that is not MNIST's."""
    line = [sys.executable, str(PICTURES), str(finished.store.path), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    light, dark = (Image.open(tmp_path / f"page-{scheme}.png") for scheme in ("light", "dark"))
    assert light.size == dark.size
    assert light.width == 1000
    corners = [np.asarray(picture.convert("L"))[0, 0] for picture in (light, dark)]
    assert corners[0] > 200 > 60 > corners[1]
