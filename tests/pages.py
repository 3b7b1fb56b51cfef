"""A parser of the page, for tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link", "use", "path", "stop"}
SECTIONS = ["winner", "trials", "curves", "quality", "scores", "importance", "cost", "budget"]
SECTIONS += ["network", "test", "mistakes", "features", "record", "repeat"]


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


def check(text: str) -> Page:
    """What holds of every page, whatever became of the run."""
    page = Page(text)
    assert page.sections == SECTIONS
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets == set(SECTIONS)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert "url(h" not in (attributes.get("style") or "")
    assert not page.all("script")
    for figure in ("svg", "img"):
        for attributes in page.all(figure):
            assert attributes.get("aria-label") or attributes.get("alt")
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg"))
    return page
