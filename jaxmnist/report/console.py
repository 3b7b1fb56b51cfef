"""Plain console output of a search: one line for each event, easy to grep.

`show.open_console` chooses it where the output can't be redrawn: in a pipe, a file or a log.
"""

from __future__ import annotations

import logging
import math
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
from jaxmnist.report.progress import Progress
from jaxmnist.report.words import about_more, lost

if TYPE_CHECKING:
    from jaxmnist.results.run import Run


class Console:
    """Prints a line for each event; `quiet` leaves only results and warnings, `silent` warnings."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.quiet = quiet or silent
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
        """Print a result."""
        if not self._silent:
            print(text, flush=True)

    def results(self, run: Run) -> None:
        """Print the ranking, why the winner won, its corrected score, and what more would bring."""
        self.result(f"\n{run.ranking()}")
        if run.ranked:
            self.result(about_more(run)[0])

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
