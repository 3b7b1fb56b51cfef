"""README's screenshots of the page, made from a run: `python experiments/pictures.py RUN FOLDER`.

They show the run's own report.html in Chromium, in light and in dark mode: its head, the trials'
configurations, the learning curves of accuracy, and the quality of two hyperparameters.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SHOWN = {
    "section": ("winner", "trials", "curves", "quality"),
    "figure": (
        "parallel",
        "curves-val-accuracy",
        "curves-accuracy",
        "quality-filters",
        "quality-dense-layers",
    ),
}
WIDTH = 1000
COLOURS = 256  # in a screenshot's palette: a third of the bytes, without a visible difference


def style() -> str:
    """What hides the rest of the page."""
    kept = ", ".join(f"#{name}" for name in SHOWN["section"])
    figures = ", ".join(f"#figure-{name}" for name in SHOWN["figure"])
    return (
        f"section:not({kept}), figure:not({figures}), nav, footer, .fine, .filter,"
        " #trials > .scroll { display: none }"
        "section { margin-top: 2rem } body { padding-bottom: 1rem }"
    )


def take(run: Path, folder: Path) -> list[Path]:
    """Write page-light.png and page-dark.png into the folder."""
    page_file = (run / "report.html").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.add_style_tag(content=style())
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            path = folder / f"page-{scheme}.png"
            few = picture.convert("RGB").quantize(
                COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            )
            few.save(path, optimize=True)
            written.append(path)
            page.close()
        browser.close()
    return written


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    given = parser.parse_args()
    for path in take(given.run, given.folder):
        print(f"{path} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
