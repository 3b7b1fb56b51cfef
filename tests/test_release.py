"""What the package page shows of README."""

from __future__ import annotations

import re
import runpy

from sessions import ROOT

README = (ROOT / "README.md").read_text("utf-8")
SETUP = runpy.run_path(str(ROOT / "setup.py"))
# Every target in Markdown and HTML, found without the expressions that setup.py replaces by.
TARGET = re.compile(r"\]\(([^)]*)\)|(?:src|srcset|href)=\"([^\"]*)\"")


def targets(page: str) -> list[str]:
    return [link or source for link, source in TARGET.findall(page)]


def test_every_target_is_an_address_of_the_tag():
    page = SETUP["package_page"](README, "https://host.example/owner/name/", "1.2.3")
    found = targets(page)
    assert len(found) == len(targets(README))
    base = "https://host.example/owner/name"
    ours = [target for target in found if target.startswith(base)]
    for target, path in zip(ours, filter(is_file, targets(README)), strict=True):
        raw = "raw" if path.endswith(".png") else "blob"
        assert target == f"{base}/{raw}/v1.2.3/{path}"
    assert all(re.match("https://", target) for target in found)
    assert f'src="{base}/raw/v1.2.3/experiments/screenshots/page-light.png"' in page


def test_without_an_address_nothing_is_broken():
    page = SETUP["package_page"](README, None, "1.2.3")
    assert targets(page) == [target for target in targets(README) if not is_file(target)]
    assert "picture" not in page.replace("pictures", "")
    assert "[Tutorial]" not in page
    assert "| Tutorial |" in page


def is_file(target: str) -> bool:
    return (ROOT / target).exists()
