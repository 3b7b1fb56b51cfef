"""How the reference reads docstrings: an example in the text is code, as for doctest."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A prompt, and what follows it up to an empty line.
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences each example, which Markdown would take for a quotation."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called for each object with a docstring or without."""
        if obj.docstring:
            fenced = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
            obj.docstring.value = fenced
