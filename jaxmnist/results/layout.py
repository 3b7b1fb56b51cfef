"""Text in columns of a terminal, where a Chinese character is as wide as two letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

ELLIPSIS = "…"


def shortened(text: str, cells: int) -> str:
    """A text, cut off at its end if it is wider than `cells` columns, of which there are 2 or more.

    >>> shortened("Ankle boot", 6), shortened("数字二", 4)
    ('Ankle…', '数…')
    """
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + ELLIPSIS


def short_names(names: Sequence[str], cells: int) -> list[str]:
    """Names of at most `cells` columns: cut off at the end, or before it where that is the same.

    >>> short_names(["class 001", "class 002", "another"], 6)
    ['cl…001', 'cl…002', 'anoth…']
    """
    short = [shortened(name, cells) for name in names]
    counts = Counter(short)
    return [
        cut if counts[cut] == 1 else _with_end(name, cells)
        for name, cut in zip(names, short, strict=True)
    ]


def _with_end(text: str, cells: int) -> str:
    """A text of at most `cells` columns: its start and, of the same width, its end."""
    if cell_len(text) <= cells:
        return text
    start = set_cell_size(text, max(0, cells // 2 - 1)).rstrip()
    end, room = "", cells - cell_len(start) - cell_len(ELLIPSIS)
    for character in reversed(text):
        if cell_len(character + end) > room:
            break
        end = character + end
    return start + ELLIPSIS + end.lstrip()


def right(text: str, cells: int) -> str:
    """A text with spaces before it, so that it fills `cells` columns."""
    return " " * (cells - cell_len(text)) + text


def widest(texts: Sequence[str]) -> int:
    """The width of the widest text, in columns."""
    return max(map(cell_len, texts), default=0)
