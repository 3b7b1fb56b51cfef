"""Text in columns of a terminal, where a Chinese character is as wide as two letters."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

ELLIPSIS = "…"
COLUMNS = re.compile(r"\S {2,}\S")  # in a line of a table, and not in a sentence


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


def wrapped(text: str, width: int) -> str:
    """A text whose sentences are broken between words, so that lines have at most `width` columns.

    Tables stay as they are: the lines of a paragraph from the first one with columns on, which at
    least two spaces divide. So does a word that is wider. A line that goes on is indented as far
    as it was.

    >>> print(wrapped("  the trials of a search\\ntrial  score\\n    0   0.99", 16))
      the trials of
      a search
    trial  score
        0   0.99
    """
    lines, in_table = [], False
    for line in text.split("\n"):
        in_table = bool(line.strip()) and (in_table or bool(COLUMNS.search(line)))
        lines += [line] if in_table or cell_len(line) <= width else _broken(line, width)
    return "\n".join(lines)


def _broken(line: str, width: int) -> list[str]:
    """The lines of a sentence that is wider than `width` columns."""
    words = line.split()
    indent = " " * (len(line) - len(line.lstrip(" ")))
    lines, last = [], indent + words[0]
    for word in words[1:]:
        if cell_len(last) + 1 + cell_len(word) <= width:
            last += f" {word}"
        else:
            lines.append(last)
            last = indent + word
    return [*lines, last]


def fitted(text: str) -> str:
    """A text as it is to be printed: `wrapped` for a terminal, and else as it is."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    return wrapped(text, shutil.get_terminal_size().columns)
