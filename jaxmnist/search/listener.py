"""The interface of listeners, which show a search: console, page, TensorBoard."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import Event
from jaxmnist.models.network import Network
from jaxmnist.results.run import Run
from jaxmnist.runs.keys import TrialKey
from jaxmnist.runs.writing import WritableRunDirectory
from jaxmnist.settings import SearchSettings


class Listener:
    """Receives the stages and results of a search; this base class shows nothing."""

    def stage(self, name: str) -> None:
        """A stage begins: 'training', 'test', 'ensemble' or 'SVM'."""

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
        """All trials are done and ranked."""

    def detail(self, text: str) -> None:
        """A long report, whose content lies in the run's files.

        It is the network's summary, the report of the test-set evaluation, of the ensemble or the
        SVM, or how these compare.
        """


class TrialListener:
    """Receives the events of trials; this base class shows nothing."""

    def event(self, event: Event) -> None:
        """An event of the engine has happened."""

    def again(self, reruns: Collection[TrialKey], ended: Collection[TrialKey], images: int) -> None:
        """Reruns follow; some may have ended in an earlier session.

        images: their training images of an epoch.
        """

    def stopping(self) -> None:
        """A signal asks the trials to stop; called in its handler, and may not raise."""

    def trained(self) -> None:
        """All trials are done."""
