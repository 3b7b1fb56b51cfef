"""The interface of whatever follows a search: a console, a page, TensorBoard."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import Event
from jaxmnist.models.network import Network
from jaxmnist.results.run import Run
from jaxmnist.runs.writing import WritableRunDirectory
from jaxmnist.settings import SearchSettings


class Listener:
    """Follows a search; this one shows nothing."""

    def stage(self, name: str) -> None:
        """A stage begins: 'training', 'test' or 'SVM'."""

    def training(
        self,
        directory: WritableRunDirectory,
        network: Network,
        settings: SearchSettings,
        dataset: Dataset,
        budget: int,
    ) -> AbstractContextManager[TrialListener]:
        """Training begins; the context ends with the search."""
        return nullcontext(TrialListener())

    def ranked(self, run: Run) -> None:
        """All trials are done, and ranked."""

    def result(self, text: str) -> None:
        """Something that was asked for: the summary, the test report, the SVM's."""


class TrialListener:
    """Follows the events of trials; this one shows nothing."""

    def event(self, event: Event) -> None:
        """Something happened to a trial."""

    def trained(self) -> None:
        """All trials are done."""
