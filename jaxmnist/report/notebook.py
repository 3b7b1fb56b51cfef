"""The page of a run inside a notebook."""

from __future__ import annotations

import html

from jaxmnist.atomic import read_bytes
from jaxmnist.errors import UsageError
from jaxmnist.report.page import PAGE, make_page
from jaxmnist.run import Run
from jaxmnist.store import RunDirectory

RELOADS = 'http-equiv="refresh"'  # what the page of a running search says


def _written(directory: RunDirectory) -> str | None:
    """The page in the run; None if it isn't of the finished search."""
    page = directory.path / PAGE
    trials = [directory.trial_folder(i) / "trial.json" for i in directory.trial_indices()]
    try:
        text = read_bytes(page).decode()
        sources = [directory.path / "search.json", directory.best / "test.json", *trials]
        newest = max(path.stat().st_mtime_ns for path in sources)
        fresh = page.stat().st_mtime_ns >= newest and RELOADS not in text
    except (UsageError, OSError, UnicodeDecodeError):
        return None
    return text if fresh else None


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
    """The page of `run`, or only the named sections of it, such as 'curves'.

    What the search has written is shown; it is made where that is missing, or older than the run.
    """
    text = _written(run.directory) or make_page(run)
    if sections:
        kept = ", ".join(f"section#{name}" for name in sections)
        rest = f"body > *:not(main), section:not({kept}) {{ display: none }} body {{ padding: 0 }}"
        text = text.replace("</style>", f"{rest} section {{ margin: 0 1rem }}\n</style>", 1)
    return InNotebook(text, height)
