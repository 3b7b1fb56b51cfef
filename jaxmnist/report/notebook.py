"""The page of a run inside a notebook."""

from __future__ import annotations

import html

from jaxmnist.report.page import make_page
from jaxmnist.results.run import Run


class InNotebook:
    """A page that a notebook shows in a frame of its own, where the styles of both stay apart.

    height: of the frame, in pixels.
    """

    def __init__(self, text: str, height: int) -> None:
        self._text = text
        self._height = height

    def _repr_html_(self) -> str:
        return (
            # The file may have been changed: no script in it runs.
            f'<iframe sandbox="" srcdoc="{html.escape(self._text)}" title="report of a search"'
            f' style="width: 100%; height: {self._height}px; border: 1px solid #8886"></iframe>'
        )


def show(run: Run, *sections: str, height: int = 900) -> InNotebook:
    """The page of `run`, made anew, or only the named sections of it, such as 'curves'."""
    text = make_page(run)
    if sections:
        kept = ", ".join(f"section#{name}" for name in sections)
        rest = f"body > *:not(main), section:not({kept}) {{ display: none }} body {{ padding: 0 }}"
        text = text.replace("</style>", f"{rest} section {{ margin: 0 1rem }}\n</style>", 1)
    return InNotebook(text, height)
