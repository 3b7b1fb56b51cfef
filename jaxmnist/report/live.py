"""Reports on a running search: console, TensorBoard and page.

Reporting never harms the search: a failure is reported once, and the trials go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import EpochFinished, Event, TrialFinished, TrialStarted
from jaxmnist.errors import JaxmnistError, Stopped, one_line
from jaxmnist.files import from_json
from jaxmnist.models.network import Network
from jaxmnist.models.space import SpaceDescription
from jaxmnist.report.console import Console, Display, Progress, can_display
from jaxmnist.report.facts import plainly
from jaxmnist.report.page import write_page
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.run import Run
from jaxmnist.results.selection import rule_of
from jaxmnist.runs.records import File, ModelReport
from jaxmnist.runs.store import Store, read_times, write_times
from jaxmnist.runs.trial import Key, Trial
from jaxmnist.search.search import Listener, TrialListener
from jaxmnist.settings import SearchSettings

if TYPE_CHECKING:
    from jaxmnist.report.tensorboard import TensorBoard


# --- Reports on the events of trials ---

logger = logging.getLogger("jaxmnist")
PAGE_EVERY = 30.0  # minimum seconds between two pages while trials run
PAGE_SHARE = 0.02  # maximum fraction of the time spent on pages


class Reports(AbstractContextManager["Reports"], TrialListener):
    """A context that reports every event of a search, and writes the last page at its end.

    Args:
      store: the run, for writing, with its search.json.
      network: the network whose configurations are trained.
      settings: the search's settings.
      dataset: the dataset that it trains on.
      budget: number of trials of the search.
      console: where to print.
    """

    def __init__(
        self,
        store: Store,
        network: Network,
        settings: SearchSettings,
        dataset: Dataset,
        budget: int,
        console: Console,
    ) -> None:
        self._store = store
        self._network = network
        self._settings = settings
        self._dataset = dataset
        self._budget = budget
        self._console = console
        self._tensorboard: TensorBoard | None = None
        self._next_page = time.monotonic() + PAGE_EVERY
        self._said: set[str] = set()
        self._trained = False
        self._listener: Callable[[Any], object] | None = None

    def __enter__(self) -> Reports:
        done = [t for t in self._records() if t.status != "running" and t.index < self._budget]
        settings = self._settings
        rule = rule_of(
            settings.selection.select, len(self._dataset.y_validation), settings.selection.tolerance
        )
        completed = [trial for trial in done if trial.status == "completed"]
        self._console.begin(
            Progress(
                self._budget,
                settings.training.epochs,
                len(self._dataset.y_train),
                rule,
                ended={trial.key for trial in done},
                completed={t.key: rule.standing(t.index, t.validation) for t in completed},
                shown=from_json(SpaceDescription, self._store.search.space).shown,
                seconds=settings.selection.max_seconds,
                cluster=settings.running.ray is not None,
            )
        )
        if self._settings.output.tensorboard:
            self._safely("TensorBoard's files", self._catch_up)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with nullcontext() if error is None else suppress(OSError):  # the terminal may be closed
            self._console.close()
        if error is None:
            self._safely("the times", self._write_times)
            self._safely("TensorBoard's files", self._write_winner)
        if self._tensorboard:
            self._safely("TensorBoard's files", self._tensorboard.close)
        if error is not None:
            self._said.add("the page")  # only the error itself is to be reported
        if self._settings.output.report:
            if error is None:
                self._console.stage("page")
            # A user who stops the search waits for this page, so it leaves out the slow sections.
            quick = isinstance(error, Stopped | KeyboardInterrupt)
            self._safely("the page", self._write_page, last=True, quick=quick)

    def tell(self, listener: Callable[[Any], object]) -> None:
        """Call a user's function with every event from now on."""
        self._listener = listener

    def event(self, event: Event) -> None:
        """Report an event of the search."""
        if self._listener is not None:
            try:
                self._listener(event)
            except Exception as problem:
                logger.warning(
                    "the listener failed, and is not called again: %s",
                    one_line(problem, named=True),
                )
                self._listener = None
        self._console.event(event)
        if not isinstance(event, TrialStarted | EpochFinished | TrialFinished):
            return
        self._trained = True
        if self._tensorboard:
            self._safely("TensorBoard's files", self._to_tensorboard, event)
        if self._settings.output.report and time.monotonic() >= self._next_page:
            self._safely("the page", self._write_page)

    def again(self, reruns: Collection[Key], ended: Collection[Key], images: int) -> None:
        """Add reruns to the progress; see `Progress.add`."""
        assert self._console.progress is not None
        self._console.progress.add(reruns, ended, images)

    def stopping(self) -> None:
        """Acknowledge a signal at once: running trials stop at their next pause."""
        self._console.stopping()

    def trained(self) -> None:
        """Rewrite an existing page when all trials are done, so that it stops reloading."""
        if self._settings.output.report and self._store.file(File.PAGE).exists():
            self._safely("the page", self._write_page, last=True, quick=True)

    def _to_tensorboard(self, event: TrialStarted | EpochFinished | TrialFinished) -> None:
        board, key = self._tensorboard, event.key
        assert board is not None
        assert self._console.progress is not None
        self._store.check_there()
        if isinstance(event, EpochFinished):
            board.epoch(key, event.epoch, event.metrics)
            return
        hyperparameters = self._console.progress.configurations[key]
        if isinstance(event, TrialStarted):
            node = event.node if self._settings.running.ray is not None else None
            board.start(key, hyperparameters, event.history, node)
        else:
            board.end(key, hyperparameters, event.history, event.error is not None)

    def _records(self) -> Sequence[Trial]:
        """The records of trials on disk; none if they can't be read."""
        try:
            return self._run().trials
        except JaxmnistError:
            return []

    def _run(self) -> Run:
        """The run as it is on disk now."""
        return Run(self._store, self._network, checked=True)

    def _catch_up(self) -> None:
        self._store.check_there()
        # TensorBoard's writer takes a third of a second to import.
        from jaxmnist.report.tensorboard import TensorBoard

        space = self._run().space
        self._tensorboard = TensorBoard(self._store.tensorboard_folder, space)
        trials = [*self._records(), *self._run().reruns]
        self._tensorboard.catch_up(trials, cluster=self._settings.running.ray is not None)

    def _write_winner(self) -> None:
        if self._tensorboard:
            self._store.check_there()
            run = self._run()
            test = Evaluation.of(run.result("best/test.json", ModelReport))
            summary = run.best_model.summary()
            final = run.ranking.final or run.best_trial
            self._tensorboard.winner(final.key, len(final.history), summary, test)

    def _write_times(self) -> None:
        if self._trained or not read_times(self._store):
            write_times(self._store, self._console.seconds())

    def _write_page(self, last: bool = False, quick: bool = False) -> None:
        began = time.monotonic()
        live = not last or quick
        try:
            write_page(
                self._run(),
                self._dataset,
                images=not live,
                reload=not last,
            )
        finally:  # so that a page that can't be made isn't tried again at every event
            now = time.monotonic()
            self._next_page = now + max(PAGE_EVERY, (now - began) / PAGE_SHARE)

    def _safely(self, what: str, do: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call `do`; report a failure to write `what` once, and go on."""
        try:
            do(*arguments, **options)
        except Exception as problem:
            if self._tensorboard and what.startswith("TensorBoard"):
                # A file with a gap is useless; the next session writes it again.
                self._tensorboard.close()
                self._tensorboard = None
            if what not in self._said:
                self._said.add(what)
                self._console.warn(
                    f"{what} can't be written: {plainly(problem)}; the search goes on"
                )


# --- The listener of a search ---


class Show(Listener):
    """Shows a search on a console, and in the files that its settings ask for.

    listener: a user's function of an event, called first; None for none.
    """

    def __init__(self, console: Console, listener: Callable[[Any], object] | None = None) -> None:
        self._console = console
        self._listener = listener

    def stage(self, name: str) -> None:
        """Begin a stage on the console."""
        self._console.stage(name)

    def training(
        self,
        store: Store,
        network: Network,
        settings: SearchSettings,
        dataset: Dataset,
        budget: int,
    ) -> Reports:
        """Reports on the trials: console, TensorBoard and page."""
        reports = Reports(store, network, settings, dataset, budget, self._console)
        if self._listener is not None:
            reports.tell(self._listener)
        return reports

    def ranked(self, run: Run) -> None:
        """Show the ranking of the trials."""
        self._console.results(run)

    def detail(self, lines: Sequence[str]) -> None:
        """Print a long report, if that is wanted."""
        self._console.detail(lines)


def open_console(quiet: bool = False, silent: bool = False, verbose: bool = False) -> Console:
    """The console that suits the output: a terminal, a notebook, or anything else."""
    if not quiet and not silent and can_display():
        return Display(verbose=verbose)
    return Console(quiet, silent, verbose)
