"""The page of a run inside a notebook."""

from __future__ import annotations

import html

from jaxmnist.report.page import make_page
from jaxmnist.results.run import Run


class InNotebook:
    """A page that a notebook shows in an iframe, which keeps the styles of the two separate.

    height: height of the iframe in pixels.
    """

    def __init__(self, text: str, height: int) -> None:
        self._text = text
        self._height = height

    def _repr_html_(self) -> str:
        return (
            # The run's files may have been changed: the sandbox runs no script.
            f'<iframe sandbox="" srcdoc="{html.escape(self._text)}" title="report of a search"'
            f' style="width: 100%; height: {self._height}px; border: 1px solid #8886"></iframe>'
        )


def show(run: Run, *sections: str, height: int = 900) -> InNotebook:
    """Make the page of `run` for a notebook, or only its named sections, such as 'curves'.

    height: height of the page in pixels.
    """
    # Nothing can be saved from the sandbox of the iframe.
    text = make_page(run).replace("</style>", ".save { display: none }\n</style>", 1)
    if sections:
        kept = ", ".join(f"section#{name}" for name in sections)
        rest = f"body > *:not(main), section:not({kept}) {{ display: none }} body {{ padding: 0 }}"
        text = text.replace("</style>", f"{rest} section {{ margin: 0 1rem }}\n</style>", 1)
    return InNotebook(text, height)
