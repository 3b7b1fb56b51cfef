"""The listener that shows a search: console, TensorBoard and page together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.models.network import Network
from jaxmnist.report.console import Console
from jaxmnist.report.display import Display, can_display
from jaxmnist.report.live import Reports
from jaxmnist.results.run import Run
from jaxmnist.runs.writing import WritableRunDirectory
from jaxmnist.search.listener import Listener
from jaxmnist.settings import SearchSettings


class Show(Listener):
    """Shows a search on a console, and in the files that its settings ask for.

    listener: a person's own function of an event, called last; None for none.
    """

    def __init__(self, console: Console, listener: Callable[[Any], object] | None = None) -> None:
        self._console = console
        self._listener = listener

    def stage(self, name: str) -> None:
        """Begin a stage on the console."""
        self._console.stage(name)

    def training(
        self,
        directory: WritableRunDirectory,
        network: Network,
        settings: SearchSettings,
        dataset: Dataset,
        budget: int,
    ) -> Reports:
        """Reports on the trials: console, TensorBoard and page."""
        reports = Reports(directory, network, settings, dataset, budget, self._console)
        if self._listener is not None:
            reports.tell(self._listener)
        return reports

    def ranked(self, run: Run) -> None:
        """Show the ranking of the trials."""
        self._console.results(run)

    def detail(self, text: str) -> None:
        """Print a long report, if that is wanted."""
        self._console.detail(text)


def open_console(quiet: bool = False, silent: bool = False, verbose: bool = False) -> Console:
    """The console that suits the output: a terminal, a notebook, or anything else."""
    if not quiet and not silent and can_display():
        return Display(verbose=verbose)
    return Console(quiet, silent, verbose)
