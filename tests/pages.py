"""A parser of the page, for tests."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

OFFLINE = ("#", "data:image/png;base64,", "data:text/csv;charset=utf-8,")
VOID = {"meta", "img", "br", "hr", "input", "link", "use", "path", "stop"}
SECTIONS = ["winner", "test", "trust", "mistakes", "trials", "curves", "quality", "scores"]
SECTIONS += ["importance", "cost", "budget", "network", "features", "record", "repeat"]
COMPARED = ["results", "test", "curves", "scores", "settings"]


class Page(HTMLParser):
    """Elements with their attributes, text by section, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self._section = "head"
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        """Their ids, in order."""
        return [attributes["id"] for attributes in self.all("section")]


def check(text: str, sections: list[str] = SECTIONS) -> Page:
    """What holds of every page, whatever became of the run."""
    page = Page(text)
    assert page.sections == sections
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    links = [attributes["href"] for attributes in page.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} == set(sections)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            link = attributes.get(name) or "#"
            assert link.startswith(OFFLINE) or link.endswith("/report.html")
        assert "url(h" not in (attributes.get("style") or "")
    # One script, the page's own, which alone its policy permits.
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.all("script") == [{}]
    metas = {a["http-equiv"]: a["content"] or "" for a in page.all("meta") if "http-equiv" in a}
    policy = metas["Content-Security-Policy"]
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy
    for figure in ("svg", "img"):
        for attributes in page.all(figure):
            assert attributes.get("aria-label") or attributes.get("alt")
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg"))
    return page
