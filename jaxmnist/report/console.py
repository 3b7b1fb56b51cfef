"""Plain console output of a search: one line for each event, easy to grep.

`show.open_console` chooses it where the output can't be redrawn: in a pipe, a file or a log.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from jaxmnist.engine.events import (
    EpochFinished,
    Event,
    StackingChosen,
    TrialEvent,
    TrialFinished,
    TrialLost,
    TrialStarted,
)
from jaxmnist.errors import printable
from jaxmnist.report.progress import Progress, stopping
from jaxmnist.report.words import about_more, lost
from jaxmnist.results import finalists
from jaxmnist.results.layout import fitted
from jaxmnist.results.run import rows_as_text

if TYPE_CHECKING:
    from jaxmnist.results.run import Run

MOST_ROWS = 10  # trials of the ranking that are printed without --verbose


class Console:
    """Prints a line for each event, and at the end the ranking.

    quiet: print only results and warnings. silent: only warnings.
    verbose: also print long reports, which the run's files and its page have.
    """

    def __init__(self, quiet: bool = False, silent: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or silent
        self.verbose = verbose
        self._silent = silent
        self._started = time.perf_counter()
        self._stages = [("data", self._started)]
        self.progress: Progress | None = None

    def stage(self, name: str) -> None:
        """Begin a stage of the run and end the one before."""
        self._stages.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """The wall time of each stage so far."""
        ends = [*(began for _, began in self._stages[1:]), time.perf_counter()]
        return {name: end - began for (name, began), end in zip(self._stages, ends, strict=True)}

    def times(self) -> str:
        """The wall time of each stage, and the total, as text."""
        parts = [f"{name} {value:.1f} s" for name, value in self.seconds().items()]
        return f"{', '.join(parts)}; {time.perf_counter() - self._started:.1f} s in all"

    def begin(self, progress: Progress) -> None:
        """Begin training; from now on events update `progress`."""
        self.progress = progress

    def close(self) -> None:
        """End training."""

    def stopping(self) -> None:
        """Say that the search is being stopped; called in a signal's handler.

        It writes past Python's streams, in which the signal may have interrupted another line.
        """
        if self._silent or self.progress is None:
            return
        line = f"jaxmnist: {stopping(len(self.progress.running))}\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(2, line.encode())

    def note(self, line: str) -> None:
        """Print a note."""
        if not self.quiet:
            print(printable(line), flush=True)

    def warn(self, line: str) -> None:
        """Print a failure that doesn't end the search, even if quiet."""
        if sys.stderr is not None:
            with suppress(OSError):  # standard error may be full or closed
                print(f"jaxmnist: {printable(line)}", file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """Print a result; on a terminal its sentences are wrapped."""
        if not self._silent:
            print(fitted(text), flush=True)

    def detail(self, text: str) -> None:
        """Print a long report, if that is wanted."""
        if self.verbose:
            self.result(text)

    def verdict(self, text: str) -> None:
        """Print the verdict, apart from what was printed before it."""
        above = "" if self.quiet and not self.verbose else "\n"
        self.result(above + text)

    def results(self, run: Run) -> None:
        """Print the first trials of the ranking, and why the winner won.

        With `verbose` print all trials, what is known of the winner's score, and what more trials
        would bring; with `quiet` alone nothing.
        """
        if self.quiet and not self.verbose:
            return
        shown, left = self.first_rows(run)
        self.result("\n".join(["", rows_as_text(shown), *([left] if left else []), "", run.why()]))
        if run.finals:
            self.result(f"\n{finalists.table_as_text(run.finals)}\n")
        for line in self.about(run):
            self.result(line)

    def first_rows(self, run: Run) -> tuple[list[tuple[str, ...]], str]:
        """The rows of the ranking to print, and a line on those that are left out, if any are."""
        rows = run.results_table()
        if self.verbose or len(rows) <= MOST_ROWS + 1:
            return rows, ""
        more = rows[MOST_ROWS + 1 :]
        without = sum(score == "–" for _, score, *_ in more)
        some = f", {without} of them failed" if without else ""
        return rows[: MOST_ROWS + 1], f"… and {len(more)} more trials{some} (--verbose shows all)"

    def about(self, run: Run) -> list[str]:
        """What is said of the winner's score beside the verdict, in sentences."""
        said = [run.about_score()] if self.verbose or run.finals else []
        return [*said, about_more(run)[0]] if self.verbose else said

    def event(self, event: Event) -> None:
        """Show an event."""
        assert self.progress is not None
        if isinstance(event, StackingChosen):
            measured = ", ".join(f"{way}: {rate:.0f}" for way, rate in event.rates.items())
            self.note(
                f"training {event.stacking}" + (f" (steps/s: {measured})" if measured else "")
            )
            return
        self.progress.update(event)
        self.show(event, self.progress)

    def show(self, event: TrialEvent, progress: Progress) -> None:
        """Show a trial's event, after which `progress` is already updated."""
        index = event.index
        clock = f"[{time.perf_counter() - self._started:6.1f} s] trial {index}"
        if isinstance(event, TrialStarted):
            after = f" after epoch {len(event.history)}" if event.history else ""
            configuration = progress.configurations[index]
            where = f" on {event.node}" if progress.cluster else ""
            self.note(f"{clock}: {configuration}: compiling and training{after}{where}")
        elif isinstance(event, EpochFinished):
            m = event.metrics
            shown = f"loss {m.loss:.4f} accuracy {m.accuracy:.4f}"
            if math.isfinite(m.val_loss):  # a refit has no validation images
                shown += f" val_loss {m.val_loss:.4f} val_accuracy {m.val_accuracy:.4f}"
            self.note(
                f"{clock} epoch {event.epoch}/{progress.epochs}: {shown}"
                f" {progress.running[index].rate:.0f} images/s"
            )
        elif isinstance(event, TrialLost):
            self.note(f"{clock}: {lost(event)}")
        elif isinstance(event, TrialFinished) and event.error is None:
            score = event.history[-1].val_accuracy
            scored = f", score {score:.4f}" if math.isfinite(score) else ""
            self.note(f"{clock}: completed in {event.seconds:.1f} s{scored}; {progress}")
        elif isinstance(event, TrialFinished):
            self.note(f"{clock}: failed after {event.seconds:.1f} s: {event.error}; {progress}")


class _Notes(logging.Handler):
    """A logging handler that shows log records on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record as a note, or as a warning if its level is WARNING or above."""
        show = self._console.warn if record.levelno >= logging.WARNING else self._console.note
        show(record.getMessage())


@contextmanager
def notes_on(console: Console) -> Iterator[None]:
    """While in this context, show jaxmnist's log records on the console."""
    logger, handler = logging.getLogger("jaxmnist"), _Notes(console)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
